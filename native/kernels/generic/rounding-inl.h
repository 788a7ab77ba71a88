// How training rounds a row or a column of numbers to codes and a scale.
#pragma once

#include <cstdint>

#include "simd/target.h"

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

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
