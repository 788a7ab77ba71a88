// Arithmetic kernels of the engine: the contract of each. kernels/scalar is the definition in code;
// kernels/generic holds bodies that every family compiles over its own simd/ header.
//
// Every family returns what the scalar one returns, bit for bit: integer sums are exact, and a
// floating-point sum is defined as eight lanes (element i goes to lane i % 8, fused multiply-add,
// in order of i) added as ((0+4)+(2+6)) + ((1+5)+(3+7)). Kernels do not allocate, throw, lock or
// start threads. Shapes and alignment are checked once, by the caller, when a model is loaded.
//
// Letters:  M output features   K input features   N tokens   D head size   S cached positions
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/formats.h"

namespace yocobit {

// Function pointers only; an empty entry is inherited from the base of the family (family.h).
struct Kernels {
  // y[n][m] = float(sum over k of w[m][k] * x[n][k]) * (x.scales[n] * scale_of(w, m)), for the rows
  // of the groups [group_begin, group_end) that are below M. The sum is exact: |sum| <= 127 K.
  // Any content of codes is safe, but the value of code 3 is not defined.
  //   y  [N][y_stride], must not overlap w or x
  void (*ternary_gemm)(const BitMatrix& w, const Int8Rows& x, int group_begin, int group_end,
                       float* y, ptrdiff_t y_stride);
  void (*sign_gemm)(const BitMatrix& w, const Int8Rows& x, int group_begin, int group_end, float* y,
                    ptrdiff_t y_stride);

  // y[n][m] = float(sum over k of w[m][k] * x[n][k]) * (x.scales[n] * w.scales[m]) for i8 weights;
  // rows [row_begin, row_end). The sum is exact in int64.
  //   y  [N][y_stride]
  void (*int8_gemm)(const DenseMatrix& w, const Int16Rows& x, int row_begin, int row_end, float* y,
                    ptrdiff_t y_stride);

  // y[n][m] = x.scales[n] * sum over blocks b, in order, of w.scales[m][b] * float(sum in the block
  // of w[m][k] * x[n][k]), by fused multiply-add; the sums in blocks are exact. Rows of the groups
  // [group_begin, group_end) that are below M.
  void (*int4_gemm)(const Int4Matrix& w, const Int16Rows& x, int group_begin, int group_end,
                    float* y, ptrdiff_t y_stride);

  // Group-scaled weights by grouped activations, for the rows of the groups [group_begin,
  // group_end) that are below M. I[s] is the exact sum over the columns k of activation group s of
  // (first + step * code[m][k]) * x[n][k], at most 3 * kInt16Max * 32 < 2^24. With scales:
  //   t = fma(x.scales[n][s], float(I[s]), t) from 0 for the s of weight group g in order
  //   y = fma(w.scales[m][g], t, y)           from 0 for the g in order
  // With row scales: one t over all s, y = w.row_scales[m] * t. Any content of codes is valid.
  //   y  [N][y_stride], must not overlap w or x
  void (*group_scaled_gemm)(const GroupScaledMatrix& w, const GroupedRows& x, int group_begin,
                            int group_end, float* y, ptrdiff_t y_stride);

  // y[n][m] = sum over k of w[m][k] * x[n][k] for f32 and f16 weights; rows [row_begin, row_end).
  //   x  [N][K], y  [N][y_stride]
  void (*dense_gemm)(const DenseMatrix& w, const float* x, int n, int row_begin, int row_end,
                     float* y, ptrdiff_t y_stride);

  // codes[k] = round-half-even(x[k] * (127 / max|x|)), 0 for K <= k < padded; returns the scale
  // max|x| / 127 (max|x| is taken as at least 1e-12) and the sum of the codes. NaN is left out of
  // max|x|. A product that is NaN has code -127: that of NaN, and that of an infinity, whose row
  // has an infinite scale and 0 for finite values.
  void (*quantize_int8_row)(const float* x, int k, int padded, int8_t* codes, float* scale,
                            int32_t* sum);

  // The same with kInt16Max instead of 127, and a sum for every 64 codes.
  void (*quantize_int16_row)(const float* x, int k, int padded, int16_t* codes, float* scale,
                             int32_t* sums);

  // One row of GroupedRows. With max|x| of each kActivationGroup columns, taken as at least 1e-12:
  // integers round-half-even(x[k] * (largest * (1 / max|x|))), 0 for K <= k < padded; scales
  // max|x| / largest; sums minus the sum of the integers. largest is kInt16Max with 2 parts. With 1
  // part it is the one of 127, 125, 123 and 121 with the least error, the larger one of equal
  // errors: (127 / largest)^2 times the sum, in eight lanes, of the squares of
  // x[k] * (largest * (1 / max|x|)) minus its integer; 127 where that sum is NaN. NaN and
  // infinities are as in a row of int8 or int16, with -largest as their integer.
  //   codes  parts of `padded` values, plane_stride apart; scales, sums  [padded / 32]
  //   k is a multiple of 8, padded one of 256
  void (*quantize_grouped_row)(const float* x, int k, int padded, int n_parts,
                               ptrdiff_t plane_stride, int8_t* codes, float* scales, int32_t* sums);

  // y = x / sqrt(mean(x^2) + eps) * weight; weight may be nullptr (ones). y may be x.
  void (*rms_norm)(const float* x, const float* weight, int size, float eps, float* y);

  // y = silu(gate) * up, gelu(gate) * up by the tanh approximation, relu(gate)^2 * up, and -1 or +1
  // by the sign of x (0 is -1). y may be gate or up.
  void (*silu_multiply)(const float* gate, const float* up, int size, float* y);
  void (*gelu_multiply)(const float* gate, const float* up, int size, float* y);
  void (*relu2_multiply)(const float* gate, const float* up, int size, float* y);
  void (*sign)(const float* x, int size, float* y);

  // y[i] = e^((x[i] - largest) * rate) within 3 ulp; results below e^-87, and that of NaN, are
  // about e^-87. size is a multiple of 8; y may be x.
  void (*exponentials)(const float* x, int size, float largest, float rate, float* y);

  // Rotate one head x [D], or its first D values, in place, D even; cosine, sine [D / 2]. Pairs
  // (2i, 2i + 1) or (i, i + D/2).
  void (*rope_interleaved)(float* x, const float* cosine, const float* sine, int head_dim);
  void (*rope_half)(float* x, const float* cosine, const float* sine, int head_dim);

  // n positions of gated retention for one head, one after the other:
  // state = decay * state + k^T v; o = q state.
  //   state  [D][D] (key by value), updated; q, k (already scaled), v, o  [n][stride]
  void (*retain)(float* state, const float* q, const float* k, const float* v, ptrdiff_t stride,
                 const float* decays, int n, int head_dim, float* o);

  // One head x [D] as a row of type, and for i8 and i4 its scale (max|x| / 127 and / 7). A cache of
  // those keeps rows in the order of kv_tiles.h, which is how attend reads them.
  void (*store)(const float* x, int head_dim, FloatType type, void* out, float* scale);
  // The inverse, to the values that attend computes with.
  void (*load)(const void* stored, float scale, int head_dim, FloatType type, float* x);

  // Attend with n queries of a K/V head, each to its own positions, walked in tiles that start at
  // multiples of kAttentionTile: a result depends on its query and positions only, not on how
  // queries are batched. Adjacent queries share the tiles that they attend to.
  //   begin < end of each query; the largest end - the smallest begin <= capacity
  void (*attend)(const AttentionQuery* queries, int n, const KeysValues& cache, float scale);

  // Flash-decoding: combine the partial results [n][stride] of consecutive KV splits, in order,
  // into the first (combined in pieces, the bits are the same); then the output o [D] of the query.
  void (*combine)(float* partials, ptrdiff_t stride, int n, int head_dim);
  void (*normalize)(const float* partial, int head_dim, float* o);

  // y += x.
  void (*add)(const float* x, int size, float* y);

  // y = factor * x + y by fused multiply-add; size is a multiple of 8.
  void (*add_scaled)(const float* x, float factor, int size, float* y);
};

}  // namespace yocobit
