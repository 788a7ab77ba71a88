// Rows of floats as codes and a scale: activations of a GEMM, and heads of a KV cache.
//
// Letters:  K input features   D head size
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/generic/codes-inl.h"
#include "kernels/generic/floats-inl.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

void quantize_int8_row(const float* x, int k, int padded, int8_t* codes, float* scale,
                       int32_t* sum) {
  *sum = k % kWideLanes == 0 ? quantize<F32xN>(x, k, 127.0f, codes, scale)
                             : quantize<F32x8>(x, k, 127.0f, codes, scale);
  for (int i = k; i < padded; ++i) codes[i] = 0;
}

void quantize_int16_row(const float* x, int k, int padded, int16_t* codes, float* scale,
                        int32_t* sums) {
  const float largest = largest_magnitude(x, k);
  const float factor = kInt16Max / largest;
  for (int block = 0; block < padded / kInt4Block; ++block) {
    F32x8 total = zero();  // exact: below 2^24
    for (int i = block * kInt4Block; i < (block + 1) * kInt4Block; i += kLanes) {
      const F32x8 rounded = i < k ? round_to_codes(load(x + i), factor, kInt16Max) : zero();
      store_codes(codes + i, rounded);
      total = add(total, rounded);
    }
    sums[block] = static_cast<int32_t>(lane_sum(total));
  }
  *scale = largest / kInt16Max;
}

// Groups of activations that are quantised together, so that their divisions and sums are vectors.
constexpr int kTogether = 8, kTogetherColumns = kTogether * kActivationGroup;
// The candidates for the largest code of a group of int8 activations.
constexpr int kLimits = 4;
constexpr float kInt8Limits[kLimits] = {127.0f, 125.0f, 123.0f, 121.0f};
// Converts squared errors from steps of a limit to steps of 127, to compare them.
constexpr float error_factor(float limit) { return (127.0f / limit) * (127.0f / limit); }

// For each group of x, select the limit with the least squared rounding error, the larger one of
// equal errors. `inverses` are those of the largest magnitudes.
YOCOBIT_INLINE void select_limits(const float* x, const float* inverses, float* limits) {
  F32x8 errors[kLimits][kTogether];
  for (int group = 0; group < kTogether; ++group) {
    for (int c = 0; c < kLimits; ++c) {
      const F32x8 factor = splat(kInt8Limits[c] * inverses[group]);
      F32x8 total = zero();
      for (int i = 0; i < kActivationGroup; i += kLanes) {
        const F32x8 value = load(x + group * kActivationGroup + i);
        const F32x8 error = rounding_error(mul(value, factor));
        total = fma(error, error, total);
      }
      errors[c][group] = total;
    }
  }
  float least[kTogether], sums[kTogether];
  for (int c = 0; c < kLimits; ++c) {
    lane_sums<kTogether, kTogether>(errors[c], sums, kTogether);
    for (int group = 0; group < kTogether; ++group) {
      const float error = sums[group] * error_factor(kInt8Limits[c]);
      const bool is_less = c == 0 || error < least[group];
      limits[group] = is_less ? kInt8Limits[c] : limits[group];
      least[group] = is_less ? error : least[group];
    }
  }
}

// kTogether groups of a row; see quantize_grouped_row.
template <int n_parts>
void quantize_groups(const float* x, ptrdiff_t plane_stride, int8_t* codes, float* scales,
                     int32_t* sums) {
  constexpr int kVectors = kActivationGroup / kLanes;
  float largest[kTogether], inverses[kTogether], limits[kTogether];
  for (int group = 0; group < kTogether; ++group) {
    F32x8 lanes = splat(static_cast<float>(kSmallestAbsmax));
    for (int i = 0; i < kVectors; ++i) {
      lanes = max(abs(load(x + group * kActivationGroup + i * kLanes)), lanes);
    }
    largest[group] = lane_max(lanes);
  }
  store(inverses, div(splat(1.0f), load(largest)));
  store(limits, splat(static_cast<float>(kInt16Max)));
  if constexpr (n_parts == 1) select_limits(x, inverses, limits);
  store(scales, div(load(largest), load(limits)));
  F32x8 totals[kTogether];  // exact: 32 * kInt16Max is below 2^24
  for (int group = 0; group < kTogether; ++group, codes += kActivationGroup) {
    const float factor = limits[group] * inverses[group];
    int16_t wide[kActivationGroup];
    totals[group] = zero();
    for (int i = 0; i < kVectors; ++i) {
      const F32x8 values = load(x + group * kActivationGroup + i * kLanes);
      const F32x8 rounded = round_to_codes(values, factor, limits[group]);
      totals[group] = add(totals[group], rounded);
      if constexpr (n_parts == 1) {
        store_codes(codes + i * kLanes, rounded);
      } else {
        store_codes(wide + i * kLanes, rounded);
      }
    }
    for (int i = 0; i < kActivationGroup && n_parts == 2; ++i) {
      codes[i] = static_cast<int8_t>(wide[i] >> 7);  // kPartWeight is 2^7
      codes[plane_stride + i] = static_cast<int8_t>(wide[i] & (kPartWeight - 1));
    }
  }
  float each[kTogether];
  lane_sums<kTogether, kTogether>(totals, each, kTogether);
  for (int group = 0; group < kTogether; ++group) sums[group] = -static_cast<int32_t>(each[group]);
}

void quantize_grouped_row(const float* x, int k, int padded, int n_parts, ptrdiff_t plane_stride,
                          int8_t* codes, float* scales, int32_t* sums) {
  for (int begin = 0; begin < padded; begin += kTogetherColumns) {
    const float* from = x + begin;
    float last[kTogetherColumns];
    if (k - begin < kTogetherColumns) {
      for (int i = 0; i < kTogetherColumns; ++i) last[i] = begin + i < k ? from[i] : 0.0f;
      from = last;
    }
    const auto run = n_parts == 1 ? quantize_groups<1> : quantize_groups<2>;
    run(from, plane_stride, codes + begin, scales, sums);
    scales += kTogether;
    sums += kTogether;
  }
}

void store_head(const float* x, int head_dim, FloatType type, void* out, float* scale) {
  if (type == FloatType::f32) {
    for (int i = 0; i < head_dim; ++i) static_cast<float*>(out)[i] = x[i];
  } else if (type == FloatType::f16) {
    for (int i = 0; i < head_dim; ++i) static_cast<uint16_t*>(out)[i] = half_from_float(x[i]);
  } else if (type == FloatType::i8) {
    quantize(x, head_dim, 127.0f, static_cast<int8_t*>(out), scale);
  } else {
    int8_t codes[kMaxHeadDim + kLanes];
    quantize(x, head_dim, 7.0f, codes, scale);
    for (int i = head_dim; i < head_dim + kLanes; ++i) codes[i] = 0;
    uint8_t* bytes = static_cast<uint8_t*>(out);
    for (int d = 0; d < head_dim; d += 2 * kLanes) {
      for (int i = 0; i < kLanes; ++i) {
        *bytes++ = static_cast<uint8_t>((codes[d + i] & 15) | (codes[d + kLanes + i] & 15) << 4);
      }
    }
  }
}

template <FloatType type>
void load_head(const void* stored, float scale, int head_dim, float* x) {
  const F32x8 scales = splat(type == FloatType::i8 || type == FloatType::i4 ? scale : 1.0f);
  for (int i = 0; i < head_dim; i += kLanes) store(x + i, mul(load_as<type>(stored, i), scales));
}

void load_any_head(const void* stored, float scale, int head_dim, FloatType type, float* x) {
  if (type == FloatType::f32) return load_head<FloatType::f32>(stored, scale, head_dim, x);
  if (type == FloatType::f16) return load_head<FloatType::f16>(stored, scale, head_dim, x);
  if (type == FloatType::i8) return load_head<FloatType::i8>(stored, scale, head_dim, x);
  load_head<FloatType::i4>(stored, scale, head_dim, x);
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
