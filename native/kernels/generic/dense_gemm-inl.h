// GEMM with float32 and float16 weights.
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/generic/floats-inl.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// Every (row, token) keeps one accumulator, so the size of a tile does not change a sum.
template <FloatType type, int kRows, int kTokens>
void dense_tile(const DenseMatrix& w, const float* x, int m, float* y, ptrdiff_t y_stride) {
  constexpr size_t kValueBytes = type == FloatType::f16 ? 2 : 4, kColumnBytes = kRows * kValueBytes;
  const size_t K = w.k;
  const auto* next = static_cast<const uint8_t*>(w.values) + (m + kRows) * K * kValueBytes;  // tile
  F32x8 sums[kTokens * kRows];
  for (F32x8& sum : sums) sum = zero();
  for (size_t k = 0; k < K; k += kLanes) {
    F32x8 weights[kRows];
    for (int r = 0; r < kRows; ++r) weights[r] = load_as<type>(w.values, (m + r) * K + k);
    for (size_t byte = 0; byte < kLanes * kColumnBytes; byte += kCacheLine) {
      prefetch(next + k * kColumnBytes + byte);
    }
    for (int t = 0; t < kTokens; ++t) {
      const F32x8 inputs = load(x + t * K + k);
      for (int r = 0; r < kRows; ++r) {
        sums[t * kRows + r] = fma(inputs, weights[r], sums[t * kRows + r]);
      }
    }
  }
  float totals[kTokens * kRows];
  lane_sums<kTokens * kRows, kTokens * kRows>(sums, totals, 0);
  for (int t = 0; t < kTokens; ++t) {
    for (int r = 0; r < kRows; ++r) y[t * y_stride + m + r] = totals[t * kRows + r];
  }
}

template <FloatType type, int kRows>
void dense_rows(const DenseMatrix& w, const float* x, int n, int m, float* y, ptrdiff_t y_stride) {
  int token = 0;
  for (; token + 4 <= n; token += 4) {
    const float* inputs = x + static_cast<size_t>(token) * w.k;
    float* outputs = y + token * y_stride;
    constexpr int kHalf = kRows == 1 ? 1 : 2;
    for (int r = 0; r < kRows; r += kHalf) {
      dense_tile<type, kHalf, 4>(w, inputs, m + r, outputs, y_stride);
    }
  }
  for (; token < n; ++token) {
    const float* inputs = x + static_cast<size_t>(token) * w.k;
    dense_tile<type, kRows, 1>(w, inputs, m, y + token * y_stride, y_stride);
  }
}

template <FloatType type>
void dense_rows(const DenseMatrix& w, const float* x, int n, int row_begin, int row_end, float* y,
                ptrdiff_t y_stride) {
  int m = row_begin;
  for (; m + 8 <= row_end; m += 8) dense_rows<type, 8>(w, x, n, m, y, y_stride);
  for (; m < row_end; ++m) dense_rows<type, 1>(w, x, n, m, y, y_stride);
}

void dense_gemm(const DenseMatrix& w, const float* x, int n, int row_begin, int row_end, float* y,
                ptrdiff_t y_stride) {
  if (w.type == FloatType::f32) {
    dense_rows<FloatType::f32>(w, x, n, row_begin, row_end, y, y_stride);
  } else {
    dense_rows<FloatType::f16>(w, x, n, row_begin, row_end, y, y_stride);
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
