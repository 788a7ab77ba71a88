// Gated memory unit (SambaY, arXiv:2507.06607): y = W_out norm(m * silu(W_g x)), where m is the
// output of the last self-decoder mixer before its gate and output projection.

#include "engine/forward_pass.h"

namespace yocobit {

void forward_gmu(const ForwardPass& pass, const Layer& layer, int) {
  Workspace& ws = pass.workspace;
  const int C = layer.g.m;
  pass.project(ws.stream.get(), layer.mixer_norm, {{&layer.g, ws.g.get()}},
               [&](int row_begin, int row_end, int begin, int end) {
                 for (int row = row_begin; row < row_end; ++row) {
                   const size_t at = static_cast<size_t>(row) * C + begin;
                   pass.kernels.silu_multiply(&ws.g[at], &ws.memory[at], end - begin, &ws.g[at]);
                 }
               });
  pass.add_to_stream(layer.out, ws.g.get(), layer.mixer_sub_norm, layer.mixer_post_norm);
}

}  // namespace yocobit
