// The operations of simd/lanes.h for 64-bit ARM: eight lanes are two 128-bit registers.
#pragma once

#include <arm_neon.h>

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/formats.h"
#include "simd/target.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

constexpr int kRegisters = 16;  // pairs of registers

struct F32x8 {
  float32x4_t low, high;
};

inline F32x8 load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
inline F32x8 load_first(const float* p, int n) {
  if (n >= kLanes) return load(p);
  float first[kLanes] = {};
  for (int i = 0; i < n; ++i) first[i] = p[i];
  return load(first);
}
inline F32x8 load_f16(const uint16_t* p) {
  const float16x8_t halves = vreinterpretq_f16_u16(vld1q_u16(p));
  return {vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)};
}
inline F32x8 from_int16(int16x8_t x) {
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(x))), vcvtq_f32_s32(vmovl_high_s16(x))};
}
inline F32x8 load_i8(const int8_t* p) { return from_int16(vmovl_s8(vld1_s8(p))); }
inline F32x8 load_i4(const uint8_t* p, int half) {
  const int8x8_t bytes = vreinterpret_s8_u8(vld1_u8(p));
  return from_int16(vmovl_s8(vshr_n_s8(half ? bytes : vshl_n_s8(bytes, 4), 4)));
}
inline void store(float* p, const F32x8& x) {
  vst1q_f32(p, x.low);
  vst1q_f32(p + 4, x.high);
}
inline void store_first(float* p, const F32x8& x, int n) {
  if (n >= kLanes) return store(p, x);
  float all[kLanes];
  store(all, x);
  for (int i = 0; i < n; ++i) p[i] = all[i];
}
inline F32x8 splat(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
inline F32x8 splat_like(const F32x8&, float x) { return splat(x); }
inline F32x8 zero() { return splat(0.0f); }
inline F32x8 fma(const F32x8& a, const F32x8& b, const F32x8& c) {
  return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
}
inline F32x8 mul(const F32x8& a, const F32x8& b) {
  return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)};
}
inline F32x8 add(const F32x8& a, const F32x8& b) {
  return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)};
}
inline F32x8 sub(const F32x8& a, const F32x8& b) {
  return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)};
}
inline F32x8 div(const F32x8& a, const F32x8& b) {
  return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)};
}
// Not vminq and vmaxq, which return NaN where one operand is NaN.
inline F32x8 min(const F32x8& a, const F32x8& b) {
  return {vbslq_f32(vcltq_f32(a.low, b.low), a.low, b.low),
          vbslq_f32(vcltq_f32(a.high, b.high), a.high, b.high)};
}
inline F32x8 max(const F32x8& a, const F32x8& b) {
  return {vbslq_f32(vcgtq_f32(a.low, b.low), a.low, b.low),
          vbslq_f32(vcgtq_f32(a.high, b.high), a.high, b.high)};
}
inline F32x8 abs(const F32x8& x) { return {vabsq_f32(x.low), vabsq_f32(x.high)}; }
inline F32x8 rounding_error(const F32x8& x) {
  return {vsubq_f32(x.low, vrndnq_f32(x.low)), vsubq_f32(x.high, vrndnq_f32(x.high))};
}
inline F32x8 power_of_two(const F32x8& n) {
  const auto power = [](float32x4_t exponent) {
    const int32x4_t biased = vaddq_s32(vcvtnq_s32_f32(exponent), vdupq_n_s32(127));
    return vreinterpretq_f32_s32(vshlq_n_s32(biased, 23));
  };
  return {power(n.low), power(n.high)};
}
inline int16x8_t to_int16(const F32x8& x) {
  return vmovn_high_s32(vmovn_s32(vcvtnq_s32_f32(x.low)), vcvtnq_s32_f32(x.high));
}
inline void store_codes(int16_t* p, const F32x8& x) { vst1q_s16(p, to_int16(x)); }
inline void store_codes(int8_t* p, const F32x8& x) { vst1_s8(p, vmovn_s16(to_int16(x))); }
inline F32x8 from_int32(const int32_t* p) {
  return {vcvtq_f32_s32(vld1q_s32(p)), vcvtq_f32_s32(vld1q_s32(p + 4))};
}
// Lanes i and i + 4 of a vector.
inline float32x4_t half_sums(const F32x8& x) { return vaddq_f32(x.low, x.high); }
inline float lane_sum(const F32x8& x) {
  const float32x4_t fours = half_sums(x);
  return vpadds_f32(vadd_f32(vget_low_f32(fours), vget_high_f32(fours)));
}
// Of two vectors, added as 0 + 4, 2 + 6 and 1 + 5, 3 + 7.
inline float32x4_t quarter_sums(const F32x8& first, const F32x8& second) {
  const float64x2_t a = vreinterpretq_f64_f32(half_sums(first));
  const float64x2_t b = vreinterpretq_f64_f32(half_sums(second));
  return vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(a, b)),
                   vreinterpretq_f32_f64(vzip2q_f64(a, b)));
}
template <int n, int run>
YOCOBIT_INLINE void lane_sums(const F32x8* x, float* sums, ptrdiff_t stride) {
  for (int i = 0; i < n; i += 4) {
    const auto at = [&](int j) { return x[i + j < n ? i + j : i]; };
    const float32x4_t four = vpaddq_f32(quarter_sums(at(0), at(1)), quarter_sums(at(2), at(3)));
    if constexpr (n % 4 == 0 && run % 4 == 0) {
      vst1q_f32(sums + i / run * stride + i % run, four);
    } else {
      float each[4];
      vst1q_f32(each, four);
      for (int j = i; j < i + 4 && j < n; ++j) sums[j / run * stride + j % run] = each[j - i];
    }
  }
}
inline float lane_max(const F32x8& x) { return vmaxvq_f32(vmaxq_f32(x.low, x.high)); }
inline F32x8 in_register(const F32x8& x) { return x; }
inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }
inline float square_root(float x) { return std::sqrt(x); }
inline uint16_t half_from_float(float x) {
  return vget_lane_u16(vreinterpret_u16_f16(vcvt_f16_f32(vdupq_n_f32(x))), 0);
}

inline void transpose_fours(float32x4_t* rows) {
  float64x2_t pairs[4];
  for (int i = 0; i < 2; ++i) {
    pairs[i] = vreinterpretq_f64_f32(vtrn1q_f32(rows[2 * i], rows[2 * i + 1]));
    pairs[i + 2] = vreinterpretq_f64_f32(vtrn2q_f32(rows[2 * i], rows[2 * i + 1]));
  }
  for (int i = 0; i < 2; ++i) {
    rows[i] = vreinterpretq_f32_f64(vzip1q_f64(pairs[2 * i], pairs[2 * i + 1]));
    rows[i + 2] = vreinterpretq_f32_f64(vzip2q_f64(pairs[2 * i], pairs[2 * i + 1]));
  }
}
inline void transpose(F32x8 (&rows)[kLanes]) {
  float32x4_t quarters[2][2][4];  // [rows][columns]
  for (int i = 0; i < 4; ++i) {
    for (int half = 0; half < 2; ++half) {
      quarters[half][0][i] = rows[4 * half + i].low;
      quarters[half][1][i] = rows[4 * half + i].high;
    }
  }
  for (auto& half : quarters) {
    for (auto& quarter : half) transpose_fours(quarter);
  }
  for (int i = 0; i < 4; ++i) {
    for (int half = 0; half < 2; ++half) {
      rows[4 * half + i] = {quarters[0][half][i], quarters[1][half][i]};
    }
  }
}

// kRows rows of 16 bytes, as columns of kRows bytes in order.
template <int kRows>
inline void transpose_byte_rows(uint8x16_t* rows) {
  uint8x16_t shuffled[kRows];
  for (int stage = 1; stage < kRows; stage *= 2) {
    for (int i = 0; i < kRows / 2; ++i) {
      shuffled[2 * i] = vzip1q_u8(rows[i], rows[i + kRows / 2]);
      shuffled[2 * i + 1] = vzip2q_u8(rows[i], rows[i + kRows / 2]);
    }
    for (int i = 0; i < kRows; ++i) rows[i] = shuffled[i];
  }
}

inline void transpose_bytes(const int8_t* x, ptrdiff_t stride, int n, int8_t* columns,
                            ptrdiff_t column_stride) {
  for (int first = 0; first < 32; first += 16) {
    uint8x16_t rows[16];
    for (int t = 0; t < 16; ++t) {
      rows[t] = t < n ? vreinterpretq_u8_s8(vld1q_s8(x + t * stride + first)) : vdupq_n_u8(0);
    }
    transpose_byte_rows<16>(rows);
    for (int i = 0; i < 16; ++i) {
      vst1q_s8(columns + (first + i) * column_stride, vreinterpretq_s8_u8(rows[i]));
    }
  }
}

struct I32x8 {
  int32x4_t low, high;
};

inline I32x8 splat_i32(int32_t x) { return {vdupq_n_s32(x), vdupq_n_s32(x)}; }
inline I32x8 add(const I32x8& a, const I32x8& b) {
  return {vaddq_s32(a.low, b.low), vaddq_s32(a.high, b.high)};
}
inline I32x8 sub(const I32x8& a, const I32x8& b) {
  return {vsubq_s32(a.low, b.low), vsubq_s32(a.high, b.high)};
}
inline I32x8 max(const I32x8& a, const I32x8& b) {
  return {vmaxq_s32(a.low, b.low), vmaxq_s32(a.high, b.high)};
}
inline void store(int32_t* p, const I32x8& x) {
  vst1q_s32(p, x.low);
  vst1q_s32(p + 4, x.high);
}
inline I32x8 magnitude_bits(const F32x8& x) {
  const F32x8 magnitudes = abs(x);
  return {vreinterpretq_s32_f32(magnitudes.low), vreinterpretq_s32_f32(magnitudes.high)};
}
inline I32x8 greater(const F32x8& a, const F32x8& b) {
  return {vreinterpretq_s32_u32(vcgtq_f32(a.low, b.low)),
          vreinterpretq_s32_u32(vcgtq_f32(a.high, b.high))};
}
// Infinity would convert to the largest integer.
inline int32x4_t rounded_if_finite(float32x4_t x) {
  const uint32x4_t is_finite = vcaltq_f32(x, vdupq_n_f32(INFINITY));
  return vandq_s32(vcvtnq_s32_f32(x), vreinterpretq_s32_u32(is_finite));
}
inline int32x4_t int16_pairs(float32x4_t first, float32x4_t second) {
  return vsliq_n_s32(rounded_if_finite(first), rounded_if_finite(second), 16);
}
inline I32x8 int16_pairs(const F32x8& first, const F32x8& second) {
  return {int16_pairs(first.low, second.low), int16_pairs(first.high, second.high)};
}

struct U8x32 {
  uint8x16_t low, high;
};

inline U8x32 splat_u8(int x) {
  const uint8x16_t bytes = vdupq_n_u8(static_cast<uint8_t>(x));
  return {bytes, bytes};
}
inline U8x32 add(const U8x32& a, const U8x32& b) {
  return {vaddq_u8(a.low, b.low), vaddq_u8(a.high, b.high)};
}
inline U8x32 bit_or(const U8x32& a, const U8x32& b) {
  return {vorrq_u8(a.low, b.low), vorrq_u8(a.high, b.high)};
}
inline U8x32 shift_left(const U8x32& x, int bits) {
  const int8x16_t shift = vdupq_n_s8(static_cast<int8_t>(bits));
  return {vshlq_u8(x.low, shift), vshlq_u8(x.high, shift)};
}
inline void store(uint8_t* p, const U8x32& x) {
  vst1q_u8(p, x.low);
  vst1q_u8(p + 16, x.high);
}
inline uint8x16_t to_bytes(const I32x8& first, const I32x8& second) {
  const int16x8_t low = vmovn_high_s32(vmovn_s32(first.low), first.high);
  const int16x8_t high = vmovn_high_s32(vmovn_s32(second.low), second.high);
  return vreinterpretq_u8_s8(vmovn_high_s16(vmovn_s16(low), high));
}
inline U8x32 to_bytes(const I32x8 (&quarters)[4]) {
  return {to_bytes(quarters[0], quarters[1]), to_bytes(quarters[2], quarters[3])};
}
inline void transpose_to(uint8_t* out, const U8x32 (&rows)[8]) {
  uint8x16_t low[8], high[8];
  for (int r = 0; r < 8; ++r) {
    low[r] = rows[r].low;
    high[r] = rows[r].high;
  }
  transpose_byte_rows<8>(low);
  transpose_byte_rows<8>(high);
  for (int r = 0; r < 8; ++r) {
    vst1q_u8(out + 16 * r, low[r]);
    vst1q_u8(out + 128 + 16 * r, high[r]);
  }
}

template <int kSumTokens>
struct I16Sums {
  static constexpr int kTokens = kSumTokens, kVectors = kTokens / 8;
  int16x8_t parts[kVectors];

  static I16Sums widened(const int8_t* bytes) {
    I16Sums sums;
    for (int i = 0; i < kVectors; ++i) sums.parts[i] = vmovl_s8(vld1_s8(bytes + 8 * i));
    return sums;
  }
  I16Sums operator+(const I16Sums& other) const {
    I16Sums sums;
    for (int i = 0; i < kVectors; ++i) sums.parts[i] = vaddq_s16(parts[i], other.parts[i]);
    return sums;
  }
  I16Sums operator-(const I16Sums& other) const {
    I16Sums sums;
    for (int i = 0; i < kVectors; ++i) sums.parts[i] = vsubq_s16(parts[i], other.parts[i]);
    return sums;
  }
  void add_to(int32_t* totals) const {
    for (int i = 0; i < kVectors; ++i, totals += 8) {
      vst1q_s32(totals, vaddw_s16(vld1q_s32(totals), vget_low_s16(parts[i])));
      vst1q_s32(totals + 4, vaddw_high_s16(vld1q_s32(totals + 4), parts[i]));
    }
  }
};

struct F32x16 {
  float32x4_t quarters[4];
};

inline F32x16 splat_like(const F32x16&, float x) {
  const float32x4_t all = vdupq_n_f32(x);
  return {{all, all, all, all}};
}
inline F32x16 add(const F32x16& a, const F32x16& b) {
  F32x16 sums;
  for (int i = 0; i < 4; ++i) sums.quarters[i] = vaddq_f32(a.quarters[i], b.quarters[i]);
  return sums;
}
inline F32x16 sub(const F32x16& a, const F32x16& b) {
  F32x16 sums;
  for (int i = 0; i < 4; ++i) sums.quarters[i] = vsubq_f32(a.quarters[i], b.quarters[i]);
  return sums;
}

// Pairs are kept apart: the first of all lanes in `low`, the second in `high`. Sums are in order.
struct Int16Pairs {
  struct Vector {
    int32x4_t low, high;
  };
  static constexpr int kLanes = 8;

  static Vector pairs(int16x8_t first, int16x8_t second) {
    return {vreinterpretq_s32_s16(first), vreinterpretq_s32_s16(second)};
  }
  static Vector zero() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }
  static Vector splat(int32_t pair) {
    return pairs(vdupq_n_s16(static_cast<int16_t>(pair & 0xffff)),
                 vdupq_n_s16(static_cast<int16_t>(pair >> 16)));
  }
  static Vector widened(const int8_t* first, const int8_t* second) {
    return pairs(vmovl_s8(vld1_s8(first)), second ? vmovl_s8(vld1_s8(second)) : vdupq_n_s16(0));
  }
  static Vector multiply_add(Vector sum, Vector a, Vector b) {
    const int16x8_t first = vreinterpretq_s16_s32(a.low), second = vreinterpretq_s16_s32(a.high);
    const int16x8_t x = vreinterpretq_s16_s32(b.low), y = vreinterpretq_s16_s32(b.high);
    sum.low = vmlal_s16(sum.low, vget_low_s16(first), vget_low_s16(x));
    sum.low = vmlal_s16(sum.low, vget_low_s16(second), vget_low_s16(y));
    sum.high = vmlal_high_s16(sum.high, first, x);
    sum.high = vmlal_high_s16(sum.high, second, y);
    return sum;
  }
  static void store_floats(float* p, Vector sum) {
    vst1q_f32(p, vcvtq_f32_s32(sum.low));
    vst1q_f32(p + 4, vcvtq_f32_s32(sum.high));
  }
};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
