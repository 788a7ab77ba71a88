// Training kernels over rows: RMSNorm and gates, forward and backward, each in one pass over
// memory.
//
// Every family returns the same bits, as with kernels.h. Kernels do not allocate, throw, lock or
// start threads.
//
// Letters:  N tokens   K features of a row, a multiple of kLanes   H heads   D = K / H, likewise
#pragma once

#include <cstdint>

#include "kernels/formats.h"

namespace yocobit {

// a[n][k] = silu(gate[n][k]) * up[n][k]; with heads, up is first divided by the root of the mean of
// its squares (and eps) over each head. Then y = a * r * weight with r = 1 / sqrt(mean(a^2) + eps),
// or y = a where weight is null.
struct GatedRows {
  const float* gate;  // [N][K]
  const float* up;    // [H][N][D], or [N][K] with n_heads of 0
  const float* weight;
  int64_t n;
  int k;
  int n_heads;
  float eps;
};

// Function pointers only; an empty entry is inherited as those of Kernels are.
struct RowKernels {
  // y = x * r * weight with r = 1 / sqrt(mean(x^2) + eps), for rows [begin, end).
  //   x, y  [N][K]; weight  [K]; r  [N]
  void (*norm)(const float* x, const float* weight, int k, float eps, int64_t begin, int64_t end,
               float* y, float* r);

  // grad is of y. grad_weight [K] is added to.
  void (*norm_gradient)(const float* grad, const float* x, const float* weight, const float* r,
                        int k, int64_t begin, int64_t end, float* grad_x, float* grad_weight);

  //   y  [N][K]; r  [N], where there is a weight; head_r  [N][H], where there are heads
  void (*gate)(const GatedRows& rows, int64_t begin, int64_t end, float* y, float* r,
               float* head_r);

  // grad is of y; grad_gate and grad_up are [N][K] with heads or without. grad_weight is added to.
  void (*gate_gradient)(const float* grad, const GatedRows& rows, const float* r,
                        const float* head_r, int64_t begin, int64_t end, float* grad_gate,
                        float* grad_up, float* grad_weight);
};

}  // namespace yocobit
