// The training kernels as training_kernels.h defines them.
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/generic/rounding-inl.h"
#include "kernels/training_kernels.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

inline uint32_t magnitude_bits(float x) { return float_bits(x) & 0x7fffffff; }

inline int code(float x, const Rounding& rounding) {
  return rounding.factor == 0.0f ? 0 : static_cast<int>(std::nearbyint(x * rounding.factor));
}

inline int weight_code(const MasterWeights& p, const MasterWeight& weight, int m, int k) {
  const float w = k < p.k ? weight.values[static_cast<size_t>(m) * p.k + k] : 0.0f;
  if (!p.is_ternary) return w > weight.mean ? 1 : -1;
  const float q = w / weight.scale;
  return q > 0.5f ? 1 : q < -0.5f ? -1 : 0;
}

// The weight and its row of a row of all weights one below the other; nullptr past the last.
struct WeightRow {
  const MasterWeight* weight;
  int index, m;

  WeightRow(const MasterWeights& p, int row) : weight(nullptr), index(0), m(row) {
    for (; index < p.n_weights; ++index) {
      if (m < p.weights[index].m) {
        weight = &p.weights[index];
        return;
      }
      m -= p.weights[index].m;
    }
  }
};

void quantize_rows(const float* x, int k, int stride, int begin, int end, int8_t* codes,
                   float* scales) {
  for (int n = begin; n < end; ++n) {
    const float* row = x + static_cast<size_t>(n) * k;
    uint32_t largest = 0;
    for (int i = 0; i < k; ++i) {
      if (magnitude_bits(row[i]) > largest) largest = magnitude_bits(row[i]);
    }
    const Rounding rounding(largest, kSmallestAbsmax, 127);
    scales[n] = rounding.scale;
    for (int i = 0; i < stride; ++i) {
      const int rounded = i < k ? code(row[i], rounding) : 0;
      codes[static_cast<size_t>(n) * stride + i] = static_cast<int8_t>(rounded);
    }
  }
}

void pack(const MasterWeights& p, int begin, int end, uint8_t* codes) {
  const int blocks = n_blocks(p), n_fields = p.is_ternary ? 4 : 8, bits = 8 / n_fields;
  int group = 0;
  for (int i = 0; i < p.n_weights; ++i) {
    const MasterWeight& weight = p.weights[i];
    for (int first = 0; first < weight.m; first += kRowsPerGroup, ++group) {
      if (group < begin || group >= end) continue;
      uint8_t* out = codes + static_cast<size_t>(group) * blocks * kRowsPerGroup * kBlockBytes;
      for (int block = 0; block < blocks; ++block) {
        for (int r = 0; r < kRowsPerGroup; ++r) {
          for (int b = 0; b < kBlockBytes; ++b, ++out) {
            *out = 0;
            for (int field = 0; field < n_fields; ++field) {
              const int k = (block * n_fields + field) * kBlockBytes + b;
              const bool is_row = first + r < weight.m;
              const int code = is_row ? weight_code(p, weight, first + r, k) : p.is_ternary - 1;
              *out |= (p.is_ternary ? code + 1 : code > 0) << (bits * field);
            }
          }
        }
      }
    }
  }
}

inline int unpacked(const MasterWeights& p, const uint8_t* codes, int group, int r, int k) {
  const int n_fields = p.is_ternary ? 4 : 8, columns = n_fields * kBlockBytes;
  const size_t block = static_cast<size_t>(group) * n_blocks(p) + k / columns;
  const int byte = codes[(block * kRowsPerGroup + r) * kBlockBytes + k % kBlockBytes];
  const int field = k % columns / kBlockBytes;
  return p.is_ternary ? (byte >> (2 * field) & 3) - 1 : (byte >> field & 1) * 2 - 1;
}

void project(const MasterWeights& p, const uint8_t* codes, const Int8Rows& x, int begin, int end,
             float* const* ys) {
  for (int n = begin; n < end; ++n) {
    int group = 0;
    for (int i = 0; i < p.n_weights; ++i) {
      const MasterWeight& weight = p.weights[i];
      const float scale = x.scales[n] * weight.scale;
      for (int m = 0; m < weight.m; ++m) {
        int32_t sum = 0;
        for (int k = 0; k < p.k; ++k) {
          sum += unpacked(p, codes, group + m / kRowsPerGroup, m % kRowsPerGroup, k) *
                 x.codes[static_cast<size_t>(n) * x.stride + k];
        }
        ys[i][static_cast<size_t>(n) * weight.m + m] = static_cast<float>(sum) * scale;
      }
      group += n_groups(weight);
    }
  }
}

void pack_transposed(const MasterWeights& p, int begin, int end, uint8_t* codes) {
  for (int pass = begin; pass < end; ++pass) {
    uint8_t* out = codes + static_cast<size_t>(pass) * p.k * 8;
    for (int k = 0; k < p.k; ++k) {
      for (int g = 0; g < 8; ++g, ++out) {
        int byte = 0;
        for (int i = 3; i >= 0; --i) {
          const WeightRow row(p, pass * kPassRows + 4 * g + i);
          byte = 3 * byte + 1 + (row.weight ? weight_code(p, *row.weight, row.m, k) : 0);
        }
        *out = static_cast<uint8_t>(byte);
      }
    }
  }
}

void input_gradient(const MasterWeights& p, const uint8_t* codes, const float* const* grads,
                    int begin, int end, float* grad_x) {
  for (int n = begin; n < end; ++n) {
    for (int k = 0; k < p.k; ++k) {
      float total = 0.0f;
      for (int group = 0; group < n_passes(p) * 8; ++group) {
        const int byte = codes[(static_cast<size_t>(group / 8) * p.k + k) * 8 + group % 8];
        const int powers[] = {1, 3, 9, 27};
        float sum = 0.0f;
        for (int i = 3; i >= 0; --i) {
          const WeightRow row(p, group * 4 + i);
          const float x = row.weight
                              ? grads[row.index][static_cast<size_t>(n) * row.weight->m + row.m] *
                                    row.weight->scale
                              : 0.0f;
          const int code = byte / powers[i] % 3;
          sum = code == 0 ? sum - x : code == 2 ? sum + x : sum;
        }
        total += sum;
      }
      grad_x[static_cast<size_t>(n) * p.k + k] = total;
    }
  }
}

// Row m of the gradient of a weight of M rows: out [K].
void gradient_row(const float* grad, int M, int m, const Int8Rows& x, int k, float* out) {
  for (int i = 0; i < k; ++i) out[i] = 0.0f;
  for (int begin = 0; begin < x.n; begin += kGradientBlock) {
    const int end = begin + kGradientBlock < x.n ? begin + kGradientBlock : x.n;
    const auto value = [&](int n) { return grad[static_cast<size_t>(n) * M + m] * x.scales[n]; };
    uint32_t largest = 0;
    for (int n = begin; n < end; ++n) {
      if (magnitude_bits(value(n)) > largest) largest = magnitude_bits(value(n));
    }
    const Rounding rounding(largest, kSmallestGradient, kGradientLevels);
    for (int i = 0; i < k; ++i) {
      int32_t sum = 0;  // 256 products of at most 32767 * 127 stay below 2^31
      for (int n = begin; n < end; ++n) {
        sum += code(value(n), rounding) * x.codes[static_cast<size_t>(n) * x.stride + i];
      }
      out[i] += static_cast<float>(sum) * rounding.scale;
    }
  }
}

void weight_gradient(const MasterWeights& p, const float* const* grads, const Int8Rows& x,
                     int begin, int end, float* const* grad_ws) {
  int group = 0;
  for (int i = 0; i < p.n_weights; ++i) {
    const int M = p.weights[i].m;
    for (int m = 0; m < M; ++m) {
      const int at = group + m / kRowsPerGroup;
      if (at < begin || at >= end) continue;
      gradient_row(grads[i], M, m, x, p.k, grad_ws[i] + static_cast<size_t>(m) * p.k);
    }
    group += n_groups(p.weights[i]);
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
