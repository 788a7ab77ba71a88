// Dot products of int8 (sdot), and int16 values in two int8 parts, which it multiplies twice as
// fast as int16.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "kernels/formats.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// Bytes below 128 are the same signed and unsigned.
inline int8x16_t as_signed(uint8x16_t x) { return vreinterpretq_s8_u8(x); }

// The sums of the lanes of x[0] to x[3].
YOCOBIT_INLINE int32x4_t lane_sums(const int32x4_t* x) {
  return vpaddq_s32(vpaddq_s32(x[0], x[1]), vpaddq_s32(x[2], x[3]));
}

// Of int16 values within kInt16Max: kPartWeight * high + low, low in [0, 127].
struct Parts {
  int8x16_t high, low;
};

YOCOBIT_INLINE Parts split(const int16_t* x) {
  static_assert(kPartWeight == 1 << 7);
  const int16x8_t first = vld1q_s16(x), second = vld1q_s16(x + 8);
  const int8x16_t low_bytes = vuzp1q_s8(vreinterpretq_s8_s16(first), vreinterpretq_s8_s16(second));
  return {vshrn_high_n_s16(vshrn_n_s16(first, 7), second, 7),
          vandq_s8(low_bytes, vdupq_n_s8(kPartWeight - 1))};
}

// kPartWeight * high + low.
YOCOBIT_INLINE int32x4_t joined(int32x4_t high, int32x4_t low) {
  return vaddq_s32(vshlq_n_s32(high, 7), low);
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
