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

// The exact sum of the columns of activation group s.
inline int32_t group_sum(const GroupScaledMatrix& w, const GroupedRows& x, int m, int n, int s) {
  const int fields = 8 / w.bits, field = s % fields;
  const uint8_t* codes =
      w.codes + (static_cast<size_t>(m / kRowsPerGroup) * w.n_blocks + s / fields) * kRowsPerGroup *
                    kBlockBytes;
  const int8_t* parts = x.codes + static_cast<size_t>(n) * x.n_parts * x.stride;
  int32_t sum = 0;
  for (int b = 0; b < kActivationGroup; ++b) {
    const uint8_t byte = codes[(b / 4 * kRowsPerGroup + m % kRowsPerGroup) * 4 + b % 4];
    const int code = byte >> (field * w.bits) & ((1 << w.bits) - 1);
    int32_t value = 0;
    for (int part = 0; part < x.n_parts; ++part) {
      value = kPartWeight * value +
              parts[part * static_cast<ptrdiff_t>(x.stride) + s * kActivationGroup + b];
    }
    sum += (w.first + w.step * code) * value;
  }
  return sum;
}

void group_scaled_gemm(const GroupScaledMatrix& w, const GroupedRows& x, int group_begin,
                       int group_end, float* y, ptrdiff_t y_stride) {
  const int n_groups = w.n_blocks * kBlockBytes * 8 / w.bits / kActivationGroup;
  const int per_scale = w.scales ? w.group_columns / kActivationGroup : n_groups;
  for (int m = group_begin * kRowsPerGroup; m < group_end * kRowsPerGroup && m < w.m; ++m) {
    for (int n = 0; n < x.n; ++n) {
      const float* x_scales = x.scales + static_cast<size_t>(n) * (x.stride / kActivationGroup);
      float total = 0.0f;
      for (int g = 0; g < n_groups / per_scale; ++g) {
        float t = 0.0f;
        for (int s = g * per_scale; s < (g + 1) * per_scale; ++s) {
          t = std::fma(x_scales[s], static_cast<float>(group_sum(w, x, m, n, s)), t);
        }
        if (w.scales) {
          const size_t at = (static_cast<size_t>(m / kRowsPerGroup) * (n_groups / per_scale) + g) *
                                kRowsPerGroup +
                            m % kRowsPerGroup;
          total = std::fma(float_from_half(w.scales[at]), t, total);
        } else {
          total = w.row_scales[m] * t;
        }
      }
      y[n * y_stride + m] = total;
    }
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
