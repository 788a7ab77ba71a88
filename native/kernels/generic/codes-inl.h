// A row of floats as integer codes and one scale.
//
// Letters:  K values
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/generic/floats-inl.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

template <typename Floats = F32x8>
YOCOBIT_INLINE float largest_magnitude(const float* x, int size) {
  Floats largest = splat_like(Floats{}, 0.0f);
  for (int i = 0; i < size; i += sizeof(Floats) / sizeof(float)) {
    largest = max(abs(load_like(Floats{}, x + i)), largest);
  }
  const float value = lane_max(largest);
  constexpr float smallest = kSmallestAbsmax;
  return value > smallest ? value : smallest;
}

// x * factor rounded; NaN and infinity become a code too.
template <typename Floats>
Floats round_to_codes(const Floats& x, float factor, float levels) {
  const Floats low = splat_like(x, -levels), high = splat_like(x, levels);
  const Floats scaled = min(max(mul(x, splat_like(x, factor)), low), high);
  return sub(add(scaled, splat_like(x, kRound)), splat_like(x, kRound));
}

// Codes of x [k] in [-levels, levels] and their scale; returns the sum of the codes.
template <typename Floats = F32x8, typename Code>
YOCOBIT_INLINE int32_t quantize(const float* x, int k, float levels, Code* codes, float* scale) {
  const float largest = largest_magnitude<Floats>(x, k);
  const float factor = levels / largest;
  Floats total = splat_like(Floats{}, 0.0f);  // exact: below 2^24
  for (int i = 0; i < k; i += sizeof(Floats) / sizeof(float)) {
    const Floats rounded = round_to_codes(load_like(Floats{}, x + i), factor, levels);
    store_codes(codes + i, rounded);
    total = add(total, rounded);
  }
  *scale = largest / levels;
  return static_cast<int32_t>(lane_sum(total));
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
