// GEMM with int8 weights, as output heads have them, in register tiles of a few rows and tokens.
//
// A family's `Dots` multiplies 16 columns at a time:
//   Weights weights<n>(p)          16 weights, or 8 and zeros
//   Inputs inputs(p)               16 activations
//   Sums zero()                    of a row by a token
//   add(sums, weights, inputs)     the new sums
//   int64_t total(sums)
//   kColumnsPerWidening            columns whose sums fit int32; a multiple of 16
//   kSets                          1 or 2, of sums: a single token uses them in turn, to cover the
//                                  latency of add
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/formats.h"
#include "simd/target.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// Weights of kRows rows, each serving kTokens tokens. The last 8 columns may be alone: activations
// are padded with zeros, weights are not padded at all.
template <typename Dots, int kRows, int kTokens>
void int8_tile(const DenseMatrix& w, const Int16Rows& x, int m, int n, float* y,
               ptrdiff_t y_stride) {
  const int8_t* weights = static_cast<const int8_t*>(w.values) + static_cast<size_t>(m) * w.k;
  const int8_t* next = weights + static_cast<size_t>(kRows) * w.k;  // tile
  const int16_t* inputs = x.codes + static_cast<size_t>(n) * x.stride;
  constexpr int kSets = kTokens == 1 ? Dots::kSets : 1;
  int64_t totals[kRows][kTokens] = {};
  for (int begin = 0; begin < w.k; begin += Dots::kColumnsPerWidening) {
    const int left = w.k - begin;
    const int end = left < Dots::kColumnsPerWidening ? w.k : begin + Dots::kColumnsPerWidening;
    typename Dots::Sums sums[kSets][kRows][kTokens];
    for (auto& set : sums) {
      for (auto& row : set) {
        for (auto& sum : row) sum = Dots::zero();
      }
    }
    const auto add_columns = [&]<int kColumns>(int k, auto& set) {
      __builtin_prefetch(next + static_cast<size_t>(k) * kRows);
      typename Dots::Inputs xs[kTokens];
#pragma GCC unroll 2
      for (int t = 0; t < kTokens; ++t) {
        xs[t] = Dots::inputs(inputs + static_cast<size_t>(t) * x.stride + k);
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const int8_t* row = weights + static_cast<size_t>(r) * w.k + k;
        const typename Dots::Weights of_row = Dots::template weights<kColumns>(row);
#pragma GCC unroll 2
        for (int t = 0; t < kTokens; ++t) set[r][t] = Dots::add(set[r][t], of_row, xs[t]);
      }
    };
    int k = begin;
    for (; k + 16 * kSets <= end; k += 16 * kSets) {
#pragma GCC unroll 2
      for (int i = 0; i < kSets; ++i) add_columns.template operator()<16>(k + 16 * i, sums[i]);
    }
    if (kSets == 2 && k + 16 <= end) {
      add_columns.template operator()<16>(k, sums[0]);
      k += 16;
    }
    if (k < end) add_columns.template operator()<8>(k, sums[0]);
    for (const auto& set : sums) {
      for (int r = 0; r < kRows; ++r) {
        for (int t = 0; t < kTokens; ++t) totals[r][t] += Dots::total(set[r][t]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kTokens; ++t) {
      y[(n + t) * y_stride + m + r] =
          static_cast<float>(totals[r][t]) * (x.scales[n + t] * w.scales[m + r]);
    }
  }
}

template <typename Dots>
void int8_gemm(const DenseMatrix& w, const Int16Rows& x, int row_begin, int row_end, float* y,
               ptrdiff_t y_stride) {
  int m = row_begin;
  for (; m + 4 <= row_end; m += 4) {
    int n = 0;
    for (; n + 2 <= x.n; n += 2) int8_tile<Dots, 4, 2>(w, x, m, n, y, y_stride);
    for (; n < x.n; ++n) int8_tile<Dots, 4, 1>(w, x, m, n, y, y_stride);
  }
  for (; m < row_end; ++m) {
    for (int n = 0; n < x.n; ++n) int8_tile<Dots, 1, 1>(w, x, m, n, y, y_stride);
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
