// Attention over a layer's own K and V: of the last `window` positions, or of all.

#include "engine/attention.h"
#include "engine/forward_pass.h"

namespace yocobit {
namespace {

void forward(const ForwardPass& pass, const Layer& layer, int index, int window) {
  Workspace& ws = pass.workspace;
  pass.project(ws.stream.get(), layer.mixer_norm,
               {{&layer.q, ws.q.get()}, {&layer.k, ws.k.get()}, {&layer.v, ws.v.get()}});
  attend(pass, {.heads = (pass.model.config.*layer.mixer->heads)(),
                .rope = pass.ropes.of(index),
                .q_norm = layer.q_norm,
                .k_norm = layer.k_norm,
                .cache = index,
                .window = window,
                .stores_kv = true});
  pass.add_to_stream(layer.out, ws.y.get(), layer.mixer_sub_norm, layer.mixer_post_norm);
}

}  // namespace

void forward_window(const ForwardPass& pass, const Layer& layer, int index) {
  forward(pass, layer, index, pass.model.config.window);
}

void forward_full(const ForwardPass& pass, const Layer& layer, int index) {
  forward(pass, layer, index, 0);
}

}  // namespace yocobit
