// Training GEMMs with ternary and sign weights, forward and backward: the contract of each.
//
// Every family returns the bits of the scalar one: sums are of integers, or in an order that is
// defined here, and one thread computes each value, so the partition of the work cannot change it.
// Kernels do not allocate, throw, lock or start threads. No content of an array can make one read
// or write out of bounds.
//
// Letters:  M output features of a weight   K input features   N tokens
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/formats.h"

namespace yocobit {

constexpr int kGradientTokens = 16;     // tokens of a tile of an input gradient
constexpr int kPassRows = 32;           // output features of a pass of the input gradient: 8 bytes
constexpr int kGradientBlock = 256;     // tokens whose sums of a weight gradient are integers
constexpr int kGradientLevels = 32767;  // of an int16 code of an output gradient
constexpr double kSmallestGradient = 1e-30;  // absmax of a column of output gradients

// A weight in floating point. What it is rounded to is computed where it is packed:
//   ternary  -1, 0, +1 as values / scale is below -0.5, between, above 0.5
//   sign     +1 where values > mean, else -1
struct MasterWeight {
  const float* values;  // [M][K]
  int m;
  float scale;
  float mean;  // of sign weights
};

// Weights that multiply the same input.
struct MasterWeights {
  const MasterWeight* weights;
  int n_weights;
  int k;
  bool is_ternary;
};

// Static: the linker must not choose a copy that was compiled for one instruction set.
static inline int n_groups(const MasterWeight& weight) {
  return (weight.m + kRowsPerGroup - 1) / kRowsPerGroup;
}

// Of all weights: each starts with a group of its own.
static inline int n_groups(const MasterWeights& p) {
  int n = 0;
  for (int i = 0; i < p.n_weights; ++i) n += n_groups(p.weights[i]);
  return n;
}

// The weight of a group of all weights, and the first of its rows.
struct WeightRows {
  int weight, m;
};
static inline WeightRows rows_of_group(const MasterWeights& p, int group) {
  int i = 0;
  for (; group >= n_groups(p.weights[i]); ++i) group -= n_groups(p.weights[i]);
  return {i, group * kRowsPerGroup};
}

static inline int n_blocks(const MasterWeights& p) {
  const int block = p.is_ternary ? kTernaryBlock : kSignBlock;
  return (p.k + block - 1) / block;
}

// Of the rows of all weights one below the other, without gaps.
static inline int n_passes(const MasterWeights& p) {
  int m = 0;
  for (int i = 0; i < p.n_weights; ++i) m += p.weights[i].m;
  return (m + kPassRows - 1) / kPassRows;
}

// Function pointers only; an empty entry is inherited as those of Kernels are.
struct TrainingKernels {
  // codes[n][k] = round-half-even(x[n][k] * (127 / largest)), 0 for K <= k < stride, and
  // scales[n] = largest / 127, where largest is max |x[n]|, at least 1e-12. A row with a value that
  // is not finite has codes of 0 and a scale that is not finite either. Rows [begin, end).
  //   x  [N][K]
  void (*quantize_rows)(const float* x, int k, int stride, int begin, int end, int8_t* codes,
                        float* scales);

  // The groups [begin, end) of p as a BitMatrix has them; columns from K on are as of values 0.
  //   codes  [n_groups][n_blocks][8][32]
  void (*pack)(const MasterWeights& p, int begin, int end, uint8_t* codes);

  // ys[i][n][m] = float(sum over k of w_i[m][k] * x[n][k]) * (x.scales[n] * w_i.scale) for tokens
  // [begin, end), begin a multiple of kTokenBlock; x.sums is not used. The sum is exact.
  //   codes  as packed; ys[i]  [N][M of weight i]
  void (*project)(const MasterWeights& p, const uint8_t* codes, const Int8Rows& x, int begin,
                  int end, float* const* ys);

  // The passes [begin, end) of p transposed: byte g of a pass holds its rows 4g to 4g + 3, the
  // i-th as (weight + 1) * 3^i. Rows that do not exist have weight 0.
  //   codes  [n_passes][K][8]
  void (*pack_transposed)(const MasterWeights& p, int begin, int end, uint8_t* codes);

  // grad_x[n][k] = sum over the rows m of all weights of w[m][k] * (grad[n][m] * scale), for tokens
  // [begin, end). Of four rows the last is added first, sums of four in order of rows.
  //   grads[i]  [N][M of weight i]; grad_x  [N][K]
  void (*input_gradient)(const MasterWeights& p, const uint8_t* codes, const float* const* grads,
                         int begin, int end, float* grad_x);

  // grad_ws[i][m][k] = sum over n of grads[i][n][m] * x.scales[n] * x.codes[n][k] for the groups
  // [begin, end). In each block of kGradientBlock tokens grads * x.scales is rounded to int16 as
  // quantize_rows does, with kGradientLevels levels for the block's column (largest at least 1e-30;
  // one that is not finite makes its row of grad_ws so); the sum of a block is exact, times its
  // scale, and blocks are added in order.
  //   x.codes  of N tokens, a multiple of 32 columns; grad_ws[i]  [M of weight i][K]
  void (*weight_gradient)(const MasterWeights& p, const float* const* grads, const Int8Rows& x,
                          int begin, int end, float* const* grad_ws);
};

}  // namespace yocobit
