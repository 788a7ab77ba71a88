// Vectors whose lanes are the rows of a group; the contract is in
// generic/group_scaled_gemm-inl.h. sdot sums four products of bytes in each lane; codes stay in
// their bit fields of the byte, but for the highest field, where they would be negative.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "kernels/generic/group_scaled_gemm-inl.h"
#include "kernels/neon/dots.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

struct RowLanes : OneGroup {
  struct Codes {
    uint8x16_t low, high;  // rows 0-3 and 4-7
  };
  using Sums = I32x8;
  static constexpr int kSums = 8, kInputs = 2;

  template <int kBits>
  static constexpr int position(int field) {
    return field * kBits == 8 - kBits ? 0 : field * kBits;
  }

  YOCOBIT_INLINE static Codes load_codes(const uint8_t* first, const uint8_t*) {
    return {vld1q_u8(first), vld1q_u8(first + 16)};
  }
  template <int kBits>
  YOCOBIT_INLINE static Codes field(const Codes& codes, int field) {
    if (field * kBits == 8 - kBits) {
      return {vshrq_n_u8(codes.low, 8 - kBits), vshrq_n_u8(codes.high, 8 - kBits)};
    }
    const uint8x16_t mask = vdupq_n_u8(static_cast<uint8_t>(((1 << kBits) - 1) << field * kBits));
    return {vandq_u8(codes.low, mask), vandq_u8(codes.high, mask)};
  }

  YOCOBIT_INLINE static Sums start(int32_t offset) { return splat(offset); }
  YOCOBIT_INLINE static void multiply_add(Sums& sums, const Codes& codes, const int8_t* x) {
    float four;  // not int32_t, which GCC loads into a general register first
    __builtin_memcpy(&four, x, sizeof four);
    const int8x8_t xs = vreinterpret_s8_f32(float32x2_t{four, 0.0f});
    sums.low = vdotq_lane_s32(sums.low, as_signed(codes.low), xs, 0);
    sums.high = vdotq_lane_s32(sums.high, as_signed(codes.high), xs, 0);
  }
  YOCOBIT_INLINE static I32x8 int32_sums(const Sums& sums, int32_t) { return sums; }

  YOCOBIT_INLINE static I32x8 splat(int32_t x) { return splat_i32(x); }
  YOCOBIT_INLINE static I32x8 add(const I32x8& a, const I32x8& b) {
    return {vaddq_s32(a.low, b.low), vaddq_s32(a.high, b.high)};
  }
  YOCOBIT_INLINE static I32x8 times_128(const I32x8& x) {
    return {vshlq_n_s32(x.low, 7), vshlq_n_s32(x.high, 7)};
  }
  YOCOBIT_INLINE static Floats to_floats(const I32x8& x) {
    return {vcvtq_f32_s32(x.low), vcvtq_f32_s32(x.high)};
  }
};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
