// GEMM with int8 and int4 weights, as output heads have them, by smmla: two rows of weights by the
// two int8 parts of a token's int16 activations.
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "kernels/i8mm/row_pairs.h"
#include "kernels/neon/dots.h"
#include "kernels/neon/int4_gemm.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// int32 budget: a lane adds 8 products of at most 128 * 128; 2^16 columns stay below 2^31.
constexpr int kColumnsPerWidening = 1 << 16;
constexpr int kInt8Rows = 8, kInt8Pairs = kInt8Rows / 2;

// The n_rows <= kInt8Rows rows from m on by kTokens tokens; rows that do not exist are the last
// one.
template <int kTokens>
void int8_tile(const DenseMatrix& w, const Int16Rows& x, int m, int n_rows, int n, float* y,
               ptrdiff_t y_stride) {
  const int8_t* rows[kInt8Rows];
  for (int r = 0; r < kInt8Rows; ++r) {
    const int row = m + (r < n_rows ? r : n_rows - 1);
    rows[r] = static_cast<const int8_t*>(w.values) + static_cast<size_t>(row) * w.k;
  }
  const int16_t* inputs = x.codes + static_cast<size_t>(n) * x.stride;
  int64_t totals[kTokens][kInt8Rows] = {};
  for (int begin = 0; begin < w.k; begin += kColumnsPerWidening) {
    const int end = begin + kColumnsPerWidening < w.k ? begin + kColumnsPerWidening : w.k;
    int32x4_t sums[kTokens][kInt8Pairs];
    for (auto& token : sums) {
      for (int32x4_t& sum : token) sum = vdupq_n_s32(0);
    }
    for (int k = begin; k < end; k += 8) {
      __builtin_prefetch(rows[kInt8Rows - 1] + w.k + static_cast<size_t>(k) * kInt8Rows);  // tile
      int8x16_t weights[kInt8Pairs];
#pragma GCC unroll 4
      for (int i = 0; i < kInt8Pairs; ++i) {
        weights[i] = vcombine_s8(vld1_s8(rows[2 * i] + k), vld1_s8(rows[2 * i + 1] + k));
      }
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
        const int8x16_t parts = split_eight(inputs + static_cast<size_t>(t) * x.stride + k);
#pragma GCC unroll 4
        for (int i = 0; i < kInt8Pairs; ++i) {
          sums[t][i] = vmmlaq_s32(sums[t][i], weights[i], parts);
        }
      }
    }
    for (int t = 0; t < kTokens; ++t) {
      for (int r = 0; r < kInt8Rows; ++r) {
        int32_t parts[4];
        vst1q_s32(parts, sums[t][r / 2]);
        totals[t][r] += int64_t{kPartWeight} * parts[r % 2 * 2] + parts[r % 2 * 2 + 1];
      }
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    for (int r = 0; r < n_rows; ++r) {
      y[(n + t) * y_stride + m + r] =
          static_cast<float>(totals[t][r]) * (x.scales[n + t] * w.scales[m + r]);
    }
  }
}

void int8_gemm(const DenseMatrix& w, const Int16Rows& x, int row_begin, int row_end, float* y,
               ptrdiff_t y_stride) {
  for (int m = row_begin; m < row_end; m += kInt8Rows) {
    const int n_rows = row_end - m < kInt8Rows ? row_end - m : kInt8Rows;
    int n = 0;
    for (; n + 4 <= x.n; n += 4) int8_tile<4>(w, x, m, n_rows, n, y, y_stride);
    for (; n < x.n; ++n) int8_tile<1>(w, x, m, n_rows, n, y, y_stride);
  }
}

// The contract is in neon/int4_gemm.h.
struct Int4PairDots {
  static constexpr int kMostTokens = 2;
  static constexpr int kVectors = kInt4Block / 8;
  using Inputs = int8x16_t[kVectors];

  YOCOBIT_INLINE static void split(const int16_t* x, Inputs& inputs) {
    for (int i = 0; i < kVectors; ++i) inputs[i] = split_eight(x + 8 * i);
  }

  template <int kTokens>
  YOCOBIT_INLINE static void rows(const uint8_t* codes, const Inputs* xs, int32x4_t* sums) {
    int32x4_t pairs[kTokens][2];
    for (auto& token : pairs) token[0] = token[1] = vdupq_n_s32(0);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i, codes += 2 * kBlockBytes) {
#pragma GCC unroll 4
      for (int c = 0; c < kVectors / 2; ++c) {
        const uint8x16_t packed = load_row_pair(codes + 8 * c);
        const int8x16_t low = as_signed(vandq_u8(packed, vdupq_n_u8(15)));
        const int8x16_t high = as_signed(vshrq_n_u8(packed, 4));
#pragma GCC unroll 2
        for (int t = 0; t < kTokens; ++t) {
          pairs[t][i] = vmmlaq_s32(pairs[t][i], low, xs[t][c]);
          pairs[t][i] = vmmlaq_s32(pairs[t][i], high, xs[t][c + kVectors / 2]);
        }
      }
    }
#pragma GCC unroll 2
    for (int t = 0; t < kTokens; ++t) {
      const int32x4_t high = vuzp1q_s32(pairs[t][0], pairs[t][1]);
      sums[t] = joined(high, vuzp2q_s32(pairs[t][0], pairs[t][1]));
    }
  }
};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
