#include "engine/decoder.h"

#include <cstring>
#include <utility>

#include "engine/attention.h"
#include "engine/feed_forward.h"
#include "engine/forward_pass.h"

namespace yocobit {
namespace {

void embed(const ForwardPass& pass) {
  const int C = pass.model.config.d_model;
  const float factor = pass.model.config.embedding_factor();
  for (int row = 0; row < pass.batch.size(); ++row) {
    float* x = &pass.workspace.stream[static_cast<size_t>(row) * C];
    pass.model.embedding.load_row(pass.kernels, pass.batch[row].token, x);
    for (int c = 0; c < C; ++c) x[c] *= factor;
  }
}

// The K and V that all cross layers share, computed once from the self-decoder's output.
void compute_shared_kv(const ForwardPass& pass) {
  const PackedModel& model = pass.model;
  Workspace& ws = pass.workspace;
  pass.project(ws.stream.get(), model.shared_norm,
               {{&model.shared_k, ws.k.get()}, {&model.shared_v, ws.v.get()}});
  store_shared_kv(pass, {.heads = model.config.heads(),
                         .rope = pass.ropes.of(model.first_cross_layer),
                         .cache = model.n_self_layers,
                         .window = 0,
                         .stores_kv = true});
}

void write_logits(const ForwardPass& pass, float* logits) {
  const PackedModel& model = pass.model;
  const float scale = model.config.logit_scale;
  const auto V = static_cast<size_t>(model.config.vocab_size);
  pass.project(pass.workspace.stream.get(), model.norm, {{&model.head, logits}},
               [&](int row_begin, int row_end, int begin, int end) {
                 if (scale == 1.0f) return;
                 for (int row = row_begin; row < row_end; ++row) {
                   for (int i = begin; i < end; ++i) logits[row * V + i] *= scale;
                 }
               });
}

// RMS-normalised rows: the input of the head, before head_norm.
void write_hidden_states(const ForwardPass& pass, float* out) {
  const PackedModel& model = pass.model;
  const int C = model.config.d_model;
  pass.pool.parallel_for(pass.batch.size(), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      pass.kernels.rms_norm(&pass.workspace.stream[row * C], model.norm, C, model.config.norm_eps,
                            out + row * C);
    }
  });
}

}  // namespace

Decoder::Decoder(const PackedModel& model, const Kernels& kernels, ThreadPool& pool)
    : model_(model), kernels_(kernels), pool_(pool), ropes_(model.config) {}

void Decoder::forward(Batch& batch, Workspace& workspace, int n_outputs, Output output,
                      float* out) {
  const ForwardPass pass = {model_, kernels_, pool_, batch, ropes_, workspace};
  pool_.parallel_for(batch.size(), [&](int64_t begin, int64_t end) {
    for (int row = static_cast<int>(begin); row < end; ++row) {
      ropes_.set_position(row, batch[row].position);
    }
  });
  self_decode(pass);
  if (n_outputs == 0) return;
  keep_last(batch, workspace, n_outputs);
  cross_decode(pass);
  if (output == Output::logits) {
    write_logits(pass, out);
  } else {
    write_hidden_states(pass, out);
  }
}

void Decoder::self_decode(const ForwardPass& pass) const {
  embed(pass);
  for (int i = 0; i < model_.n_self_layers; ++i) {
    const Layer& layer = model_.layers[i];
    layer.mixer->forward(pass, layer, i);
    feed_forward(pass, layer);
  }
  if (!model_.has_cross_decoder()) return;
  if (pass.workspace.memory) std::swap(pass.workspace.memory, pass.workspace.y);
  compute_shared_kv(pass);
}

// Early exit: keep the rows whose logits are requested.
void Decoder::keep_last(Batch& batch, Workspace& workspace, int n) {
  const int first = batch.size() - n, C = model_.config.d_model;
  if (first == 0) return;
  for (float* rows : {workspace.stream.get(), workspace.memory.get()}) {
    if (rows) std::memmove(rows, rows + static_cast<size_t>(first) * C, sizeof(float) * n * C);
  }
  batch.keep_last(n);
  if (!model_.has_cross_decoder()) return;
  RopeTable& rope = ropes_.of(model_.first_cross_layer);
  for (int row = 0; row < n; ++row) rope.set_position(row, batch[row].position);
}

void Decoder::cross_decode(const ForwardPass& pass) const {
  for (int i = model_.n_self_layers; i < static_cast<int>(model_.layers.size()); ++i) {
    const Layer& layer = model_.layers[i];
    layer.mixer->forward(pass, layer, i);
    feed_forward(pass, layer);
  }
}

}  // namespace yocobit
