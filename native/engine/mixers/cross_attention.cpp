// Cross attention (YOCO, arXiv:2405.05254): the layer's own queries over the K and V that all cross
// layers share, of all positions or of the blocks that the first cross layer selects.

#include "engine/attention.h"
#include "engine/forward_pass.h"

namespace yocobit {

void forward_cross(const ForwardPass& pass, const Layer& layer, int index) {
  Workspace& ws = pass.workspace;
  const ModelConfig& config = pass.model.config;
  pass.project(ws.stream.get(), layer.mixer_norm, {{&layer.q, ws.q.get()}});
  attend(pass, {.heads = config.heads(),
                .rope = pass.ropes.of(index),
                .cache = pass.model.n_self_layers,
                .window = 0,
                .stores_kv = false,
                .selects = index == pass.model.first_cross_layer,
                .is_sparse = config.cross_attention == CrossAttention::index});
  pass.add_to_stream(layer.out, ws.y.get(), layer.mixer_sub_norm, layer.mixer_post_norm);
}

}  // namespace yocobit
