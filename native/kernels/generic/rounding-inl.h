// How training rounds a row or a column of numbers to codes and a scale.
#pragma once

#include <cstdint>

#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

constexpr uint32_t kInfinityBits = 0x7f800000;

// From the bits of the largest magnitude. Compared as integers NaN is the largest of all, then
// infinity, so that neither is lost.
struct Rounding {
  float factor, scale;  // codes are x * factor, rounded; all are 0 where the factor is

  Rounding(uint32_t largest_bits, float smallest, int levels) {
    float largest;
    __builtin_memcpy(&largest, &largest_bits, sizeof largest);
    if (largest < smallest) largest = smallest;
    factor = largest_bits < kInfinityBits ? static_cast<float>(levels) / largest : 0.0f;
    scale = largest / static_cast<float>(levels);
  }
};

// Of the rows of a group, from the bits of their largest magnitudes: store the scales and return
// the factors.
inline F32x8 round_rows(const I32x8& largest_bits, float smallest, int levels, float* scales) {
  int32_t largest[kRowsPerGroup];
  float factors[kRowsPerGroup];
  store(largest, largest_bits);
  for (int r = 0; r < kRowsPerGroup; ++r) {
    const Rounding rounding(static_cast<uint32_t>(largest[r]), smallest, levels);
    factors[r] = rounding.factor;
    scales[r] = rounding.scale;
  }
  return load(factors);
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
