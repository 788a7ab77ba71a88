// The reference kernels: no cleverness, no intrinsics. Built and tested on every machine.

#include <cmath>
#include <cstring>

#include "kernels/code_tiles.h"
#include "kernels/kernels.h"
#include "kernels/row_kernels.h"

namespace yocobit {
namespace {

constexpr int kRegisters = 16;

struct F32x8 {
  float v[kLanes];
};

template <typename Function>
F32x8 lanes(Function value) {
  F32x8 result;
  for (int i = 0; i < kLanes; ++i) result.v[i] = value(i);
  return result;
}

float float_from_half(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t exponent = half >> 10 & 31, mantissa = half & 1023;
  if (exponent == 0) {
    const float value = std::ldexp(static_cast<float>(mantissa), -24);
    return sign ? -value : value;
  }
  const uint32_t bits = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | mantissa << 13;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Round half to even; overflow becomes infinity, as F16C does.
uint16_t half_from_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00 | (bits >> 13 & 0x3ff);
  if (bits >= 0x477ff000) return sign | 0x7c00;
  if (bits < 0x38800000) {  // subnormal or zero: a multiple of 2^-24
    return sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(std::fabs(value), 24)));
  }
  const uint32_t rounded = bits - 0x38000000 + 0xfff + (bits >> 13 & 1);
  return sign | static_cast<uint16_t>(rounded >> 13);
}

F32x8 load(const float* p) {
  return lanes([&](int i) { return p[i]; });
}
F32x8 load_f16(const uint16_t* p) {
  return lanes([&](int i) { return float_from_half(p[i]); });
}
F32x8 load_i8(const int8_t* p) {
  return lanes([&](int i) { return static_cast<float>(p[i]); });
}
F32x8 load_i4(const uint8_t* p, int half) {
  return lanes([&](int i) {
    const int code = p[i] >> (4 * half) & 15;
    return static_cast<float>(code < 8 ? code : code - 16);
  });
}
void store(float* p, const F32x8& x) { std::memcpy(p, x.v, sizeof x.v); }
F32x8 splat(float x) {
  return lanes([&](int) { return x; });
}
F32x8 zero() { return splat(0.0f); }
F32x8 fma(const F32x8& a, const F32x8& b, const F32x8& c) {
  return lanes([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
}
F32x8 mul(const F32x8& a, const F32x8& b) {
  return lanes([&](int i) { return a.v[i] * b.v[i]; });
}
F32x8 add(const F32x8& a, const F32x8& b) {
  return lanes([&](int i) { return a.v[i] + b.v[i]; });
}
F32x8 sub(const F32x8& a, const F32x8& b) {
  return lanes([&](int i) { return a.v[i] - b.v[i]; });
}
F32x8 div(const F32x8& a, const F32x8& b) {
  return lanes([&](int i) { return a.v[i] / b.v[i]; });
}
F32x8 min(const F32x8& a, const F32x8& b) {
  return lanes([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
F32x8 max(const F32x8& a, const F32x8& b) {
  return lanes([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
F32x8 abs(const F32x8& x) {
  return lanes([&](int i) { return std::fabs(x.v[i]); });
}
F32x8 power_of_two(const F32x8& n) {
  return lanes([&](int i) { return std::ldexp(1.0f, static_cast<int>(n.v[i])); });
}
template <typename Code>
void store_codes(Code* p, const F32x8& x) {
  for (int i = 0; i < kLanes; ++i) p[i] = static_cast<Code>(x.v[i]);
}
F32x8 from_int32(const int32_t* p) {
  return lanes([&](int i) { return static_cast<float>(p[i]); });
}
float lane_sum(const F32x8& x) {
  const float* v = x.v;
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}
template <int n, int run>
void lane_sums(const F32x8* x, float* sums, ptrdiff_t stride) {
  for (int i = 0; i < n; ++i) sums[i / run * stride + i % run] = lane_sum(x[i]);
}
float lane_max(const F32x8& x) {
  float largest = x.v[0];
  for (int i = 1; i < kLanes; ++i) largest = x.v[i] > largest ? x.v[i] : largest;
  return largest;
}
F32x8 in_register(const F32x8& x) { return x; }
void prefetch(const void*) {}

#include "simd/lanes_eight.inc"

float square_root(float x) { return std::sqrt(x); }

#include "kernels/generic/attention_tiles.inc"
#include "kernels/generic/kernels_float.inc"

using QueryCodes = WholeCodes<kQueryCodes>;
using WeightCodes = WholeCodes<kAttentionTile>;

// Code d of a row of a tile.
template <FloatType type, typename Order>
int32_t code_at(const Order& order, const uint8_t* tile, int position, int d, int64_t row_bytes) {
  if (type == FloatType::i8) return tile[order(position, d, row_bytes)] - 128;
  const uint8_t byte = tile[order(position, d / 16 * 8 + d % 8, row_bytes)];
  return (byte >> (d % 16 / 8 * 4) & 15) - 8;
}

template <FloatType type, int kQueries>
void score_codes(const QueryCodes* queries, const uint8_t* keys, int64_t row_bytes, NextTile&,
                 int32_t* sums) {
  const int D = static_cast<int>(type == FloatType::i8 ? row_bytes : 2 * row_bytes);
  for (int i = 0; i < kQueries; ++i) {
    for (int j = 0; j < kAttentionTile; ++j) {
      int32_t sum = 0;
      for (int d = 0; d < D; ++d) {
        sum += queries[i].codes[d] * code_at<type>(key_byte, keys, j, d, row_bytes);
      }
      sums[i * kAttentionTile + j] = sum;
    }
  }
}

template <FloatType type, int kQueries>
void add_codes(const WeightCodes* weights, const uint8_t* values, int64_t row_bytes, int D,
               NextTile&, int32_t* sums) {
  for (int i = 0; i < kQueries; ++i) {
    for (int d = 0; d < D; ++d) {
      int32_t sum = 0;
      for (int j = 0; j < kAttentionTile; ++j) {
        sum += weights[i].codes[j] * code_at<type>(value_byte, values, j, d, row_bytes);
      }
      sums[i * D + d] = sum;
    }
  }
}

#include "kernels/generic/kernels_mixers.inc"

// sum over columns of (value of the weight) * x, from the code of each column.
template <int bits, typename Weight>
void bit_matmul(const BitMatrix& w, const QuantizedRows& x, int group_begin, int group_end,
                float* y, ptrdiff_t y_stride, Weight weight) {
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
      y[n * y_stride + m] = static_cast<float>(sum) * (x.scales[n] * w.scale);
    }
  }
}

void ternary_matmul(const BitMatrix& w, const QuantizedRows& x, int group_begin, int group_end,
                    float* y, ptrdiff_t y_stride) {
  bit_matmul<2>(w, x, group_begin, group_end, y, y_stride, [](int code) { return code - 1; });
}

void sign_matmul(const BitMatrix& w, const QuantizedRows& x, int group_begin, int group_end,
                 float* y, ptrdiff_t y_stride) {
  bit_matmul<1>(w, x, group_begin, group_end, y, y_stride, [](int code) { return 2 * code - 1; });
}

void int8_matmul(const DenseMatrix& w, const WideRows& x, int row_begin, int row_end, float* y,
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

void int4_matmul(const Int4Matrix& w, const WideRows& x, int group_begin, int group_end, float* y,
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

#define YOCOBIT_KERNEL_TABLE kScalarKernels
#define YOCOBIT_KERNEL_NAME "scalar"
#include "kernels/kernel_table.inc"
#define YOCOBIT_ROW_TABLE kScalarRows
#include "kernels/generic/row_kernels.inc"

}  // namespace yocobit
