// GEMM with integer weights, as kernels.h defines it.
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/formats.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// sum over columns of (value of the weight) * x, from the code of each column.
template <int bits, typename Weight>
void low_bit_gemm(const BitMatrix& w, const Int8Rows& x, int group_begin, int group_end, float* y,
                  ptrdiff_t y_stride, Weight weight) {
  constexpr int kBlock = kBlockBytes * 8 / bits;
  for (int m = group_begin * kRowsPerGroup; m < group_end * kRowsPerGroup && m < w.m; ++m) {
    for (int n = 0; n < x.n; ++n) {
      const int8_t* row = x.codes + static_cast<size_t>(n) * x.stride;
      int32_t sum = 0;
      for (int k = 0; k < w.n_blocks * kBlock; ++k) {
        const size_t block =
            (static_cast<size_t>(m / kRowsPerGroup) * w.n_blocks + k / kBlock) * kRowsPerGroup +
            m % kRowsPerGroup;
        const uint8_t byte = w.codes[block * kBlockBytes + k % kBlockBytes];
        const int code = byte >> (k % kBlock / kBlockBytes * bits) & ((1 << bits) - 1);
        sum += weight(code) * row[k];
      }
      y[n * y_stride + m] = static_cast<float>(sum) * (x.scales[n] * scale_of(w, m));
    }
  }
}

void ternary_gemm(const BitMatrix& w, const Int8Rows& x, int group_begin, int group_end, float* y,
                  ptrdiff_t y_stride) {
  low_bit_gemm<2>(w, x, group_begin, group_end, y, y_stride, [](int code) { return code - 1; });
}

void sign_gemm(const BitMatrix& w, const Int8Rows& x, int group_begin, int group_end, float* y,
               ptrdiff_t y_stride) {
  low_bit_gemm<1>(w, x, group_begin, group_end, y, y_stride, [](int code) { return 2 * code - 1; });
}

void int8_gemm(const DenseMatrix& w, const Int16Rows& x, int row_begin, int row_end, float* y,
               ptrdiff_t y_stride) {
  for (int m = row_begin; m < row_end; ++m) {
    const int8_t* weights = static_cast<const int8_t*>(w.values) + static_cast<size_t>(m) * w.k;
    for (int n = 0; n < x.n; ++n) {
      int64_t sum = 0;
      for (int k = 0; k < w.k; ++k)
        sum += weights[k] * x.codes[static_cast<size_t>(n) * x.stride + k];
      y[n * y_stride + m] = static_cast<float>(sum) * (x.scales[n] * w.scales[m]);
    }
  }
}

void int4_gemm(const Int4Matrix& w, const Int16Rows& x, int group_begin, int group_end, float* y,
               ptrdiff_t y_stride) {
  for (int m = group_begin * kRowsPerGroup; m < group_end * kRowsPerGroup && m < w.m; ++m) {
    for (int n = 0; n < x.n; ++n) {
      const int16_t* row = x.codes + static_cast<size_t>(n) * x.stride;
      float total = 0.0f;
      for (int block = 0; block < w.n_blocks; ++block) {
        const size_t at =
            (static_cast<size_t>(m / kRowsPerGroup) * w.n_blocks + block) * kRowsPerGroup +
            m % kRowsPerGroup;
        int32_t sum = 0;
        for (int k = 0; k < kInt4Block; ++k) {
          const uint8_t byte = w.codes[at * kBlockBytes + k % kBlockBytes];
          const int code = byte >> (k / kBlockBytes * 4) & 15;
          sum += (code - 8) * row[block * kInt4Block + k];
        }
        total = std::fma(static_cast<float>(sum), float_from_half(w.scales[at]), total);
      }
      y[n * y_stride + m] = total * x.scales[n];
    }
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
