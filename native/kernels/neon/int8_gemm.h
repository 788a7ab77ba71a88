// GEMM with int8 weights, as output heads have them, by sdot over the two int8 parts of int16
// activations.
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "kernels/neon/dots.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// int32 budget: a lane adds 4 products of at most 128 * 128 for every 16 columns; 2^16 columns
// reach 2^28.
constexpr int kColumnsPerWidening = 1 << 16;

// kRows rows by kTokens tokens. The last 8 columns may be alone: activations are padded with zeros,
// weights are not padded at all.
template <int kRows, int kTokens>
void int8_tile(const DenseMatrix& w, const Int16Rows& x, int m, int n, float* y,
               ptrdiff_t y_stride) {
  const int8_t* weights = static_cast<const int8_t*>(w.values) + static_cast<size_t>(m) * w.k;
  const int8_t* next = weights + static_cast<size_t>(kRows) * w.k;  // tile
  const int16_t* inputs = x.codes + static_cast<size_t>(n) * x.stride;
  int64_t totals[kTokens][kRows] = {};
  for (int begin = 0; begin < w.k; begin += kColumnsPerWidening) {
    const int end = begin + kColumnsPerWidening < w.k ? begin + kColumnsPerWidening : w.k;
    int32x4_t high[kTokens][kRows], low[kTokens][kRows];
    for (int t = 0; t < kTokens; ++t) {
      for (int r = 0; r < kRows; ++r) high[t][r] = low[t][r] = vdupq_n_s32(0);
    }
    const auto add_columns = [&](int k, auto load) {
      __builtin_prefetch(next + static_cast<size_t>(k) * kRows);
      Parts xs[kTokens];
#pragma GCC unroll 2
      for (int t = 0; t < kTokens; ++t)
        xs[t] = split(inputs + static_cast<size_t>(t) * x.stride + k);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const int8x16_t row = load(weights + static_cast<size_t>(r) * w.k + k);
#pragma GCC unroll 2
        for (int t = 0; t < kTokens; ++t) {
          high[t][r] = vdotq_s32(high[t][r], row, xs[t].high);
          low[t][r] = vdotq_s32(low[t][r], row, xs[t].low);
        }
      }
    };
    int k = begin;
    for (; k + 16 <= end; k += 16) add_columns(k, [](const int8_t* p) { return vld1q_s8(p); });
    if (k < end) {
      add_columns(k, [](const int8_t* p) { return vcombine_s8(vld1_s8(p), vdup_n_s8(0)); });
    }
    for (int t = 0; t < kTokens; ++t) {
      for (int r = 0; r < kRows; ++r) {
        totals[t][r] += kPartWeight * vaddlvq_s32(high[t][r]) + vaddlvq_s32(low[t][r]);
      }
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    for (int r = 0; r < kRows; ++r) {
      y[(n + t) * y_stride + m + r] =
          static_cast<float>(totals[t][r]) * (x.scales[n + t] * w.scales[m + r]);
    }
  }
}

void int8_gemm(const DenseMatrix& w, const Int16Rows& x, int row_begin, int row_end, float* y,
               ptrdiff_t y_stride) {
  int m = row_begin;
  for (; m + 4 <= row_end; m += 4) {
    int n = 0;
    for (; n + 2 <= x.n; n += 2) int8_tile<4, 2>(w, x, m, n, y, y_stride);
    for (; n < x.n; ++n) int8_tile<4, 1>(w, x, m, n, y, y_stride);
  }
  for (; m < row_end; ++m) {
    for (int n = 0; n < x.n; ++n) int8_tile<1, 1>(w, x, m, n, y, y_stride);
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
