// The literal gated retention of the earliest YOCO + BitNet demonstrations: y = x * sigmoid(W x),
// where x is the block's normalised input. It mixes no positions and keeps no state.

#include <cmath>

#include "engine/forward_pass.h"

namespace yocobit {

void forward_gate(const ForwardPass& pass, const Layer& layer, int) {
  Workspace& ws = pass.workspace;
  const int C = layer.g.m;
  const auto gate_rows = [&](int row_begin, int row_end, int begin, int end) {
    for (int row = row_begin; row < row_end; ++row) {
      const size_t at = static_cast<size_t>(row) * C + begin;
      const float* x = &ws.normed[at];
      float *gate = &ws.g[at], *y = &ws.y[at];
      const int n = end - begin;
      for (int i = 0; i < n; ++i) y[i] = std::fabs(gate[i]);
      pass.kernels.exponentials(y, n, 0.0f, -1.0f, y);  // e^-|gate| <= 1
      for (int i = 0; i < n; ++i) {
        gate[i] = y[i] = x[i] * ((gate[i] < 0 ? y[i] : 1.0f) / (1.0f + y[i]));
      }
    }
  };
  pass.project_to_stream(layer.g, ws.stream.get(), layer.mixer_norm, ws.g.get(), gate_rows,
                         layer.mixer_post_norm);
}

}  // namespace yocobit
