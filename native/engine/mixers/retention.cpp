// Gated retention (YOCO, arXiv:2405.05254), one D x D state per head:
//   S_t = γ_t S_{t-1} + k_tᵀ v_t;  o_t = q_t S_t;  y = W_out norm(silu(g) * RMSNorm_head(o))
// where log γ_t = logsigmoid(w_γ x_t) / 16 and k is scaled by D^-1/2.
//
// Letters:  N rows   C model width   H heads   D head size

#include <cmath>

#include "engine/forward_pass.h"
#include "engine/session.h"

namespace yocobit {
namespace {

// sigmoid(logit)^(1/16). In double: it is one scalar per head and token, and sets how fast the
// state fades.
float decay_from_logit(float logit) {
  const double z = logit;
  const double log_sigmoid = z < 0 ? z - std::log1p(std::exp(z)) : -std::log1p(std::exp(-z));
  return static_cast<float>(std::exp(log_sigmoid / 16));
}

// One head of the rows of one session, whose inputs are x [N][C].
void retain_head(const ForwardPass& pass, const Layer& layer, const RopeTable& rope, const float* x,
                 const Segment& segment, int head, float* states) {
  Workspace& ws = pass.workspace;
  const int C = layer.q.k, D = pass.model.config.retention_heads().head_dim;
  const int n = segment.end - segment.begin;
  const float key_scale = 1.0f / std::sqrt(static_cast<float>(D));
  const size_t at = static_cast<size_t>(segment.begin) * C + head * D;
  const DenseMatrix decay_weights = {
      .values = static_cast<const float*>(layer.decay.codes) + static_cast<ptrdiff_t>(head) * C,
      .scales = nullptr,
      .type = FloatType::f32,
      .m = 1,
      .k = C};
  float* decays = &ws.decay[static_cast<size_t>(head) * pass.model.config.ffn->max_batch_tokens +
                            segment.begin];
  pass.kernels.dense_gemm(decay_weights, x + static_cast<ptrdiff_t>(segment.begin) * C, n, 0, 1,
                          decays, 1);
  for (int i = 0; i < n; ++i) {
    float* k = &ws.k[at + static_cast<size_t>(i) * C];
    decays[i] = decay_from_logit(decays[i]);
    rope.apply(pass.kernels, segment.begin + i, &ws.q[at + static_cast<size_t>(i) * C]);
    rope.apply(pass.kernels, segment.begin + i, k);
    for (int d = 0; d < D; ++d) k[d] *= key_scale;
  }
  pass.kernels.retain(states + static_cast<size_t>(head) * D * D, &ws.q[at], &ws.k[at], &ws.v[at],
                      C, decays, n, D, &ws.y[at]);
  for (int i = 0; i < n; ++i) {
    float* y = &ws.y[at + static_cast<size_t>(i) * C];
    pass.kernels.rms_norm(y, nullptr, D, pass.model.config.norm_eps, y);
    float* g = &ws.g[at + static_cast<size_t>(i) * C];
    pass.kernels.silu_multiply(g, y, D, g);
  }
}

}  // namespace

void forward_retention(const ForwardPass& pass, const Layer& layer, int index) {
  Workspace& ws = pass.workspace;
  const Batch& batch = pass.batch;
  const int H = pass.model.config.n_self_heads;
  const Activations input = pass.project(ws.stream.get(), layer.mixer_norm,
                                         {{&layer.q, ws.q.get()},
                                          {&layer.k, ws.k.get()},
                                          {&layer.v, ws.v.get()},
                                          {&layer.g, ws.g.get()}});
  pass.pool.parallel_for(int64_t{batch.n_segments()} * H, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Segment& segment = batch.segments()[i / H];
      float* states = batch[segment.begin].session->layers[index].recurrent.get();
      retain_head(pass, layer, pass.ropes.of(index), input.values, segment, static_cast<int>(i % H),
                  states);
    }
  });
  pass.add_to_stream(layer.out, ws.g.get(), layer.mixer_sub_norm, layer.mixer_post_norm);
}

}  // namespace yocobit
