// The operations of simd/lanes.h in plain C++: the definition, for any CPU.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/formats.h"
#include "simd/target.h"

namespace yocobit::YOCOBIT_TARGET {
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

inline float float_from_half(uint16_t half) {
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

inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Round half to even; overflow becomes infinity, as F16C does.
inline uint16_t half_from_float(float value) {
  uint32_t bits = float_bits(value);
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

inline float square_root(float x) { return std::sqrt(x); }

inline F32x8 load(const float* p) {
  return lanes([&](int i) { return p[i]; });
}
inline F32x8 load_first(const float* p, int n) {
  return lanes([&](int i) { return i < n ? p[i] : 0.0f; });
}
inline F32x8 load_f16(const uint16_t* p) {
  return lanes([&](int i) { return float_from_half(p[i]); });
}
inline F32x8 load_i8(const int8_t* p) {
  return lanes([&](int i) { return static_cast<float>(p[i]); });
}
inline F32x8 load_i4(const uint8_t* p, int half) {
  return lanes([&](int i) {
    const int code = p[i] >> (4 * half) & 15;
    return static_cast<float>(code < 8 ? code : code - 16);
  });
}
inline void store(float* p, const F32x8& x) { std::memcpy(p, x.v, sizeof x.v); }
inline void store_first(float* p, const F32x8& x, int n) {
  for (int i = 0; i < kLanes && i < n; ++i) p[i] = x.v[i];
}
inline F32x8 splat(float x) {
  return lanes([&](int) { return x; });
}
inline F32x8 splat_like(const F32x8&, float x) { return splat(x); }
inline F32x8 zero() { return splat(0.0f); }
inline F32x8 fma(const F32x8& a, const F32x8& b, const F32x8& c) {
  return lanes([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
}
inline F32x8 mul(const F32x8& a, const F32x8& b) {
  return lanes([&](int i) { return a.v[i] * b.v[i]; });
}
inline F32x8 add(const F32x8& a, const F32x8& b) {
  return lanes([&](int i) { return a.v[i] + b.v[i]; });
}
inline F32x8 sub(const F32x8& a, const F32x8& b) {
  return lanes([&](int i) { return a.v[i] - b.v[i]; });
}
inline F32x8 div(const F32x8& a, const F32x8& b) {
  return lanes([&](int i) { return a.v[i] / b.v[i]; });
}
inline F32x8 min(const F32x8& a, const F32x8& b) {
  return lanes([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline F32x8 max(const F32x8& a, const F32x8& b) {
  return lanes([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline F32x8 abs(const F32x8& x) {
  return lanes([&](int i) { return std::fabs(x.v[i]); });
}
inline F32x8 rounding_error(const F32x8& x) {
  return lanes([&](int i) { return x.v[i] - std::nearbyint(x.v[i]); });
}
inline F32x8 power_of_two(const F32x8& n) {
  return lanes([&](int i) { return std::ldexp(1.0f, static_cast<int>(n.v[i])); });
}
template <typename Code>
void store_codes(Code* p, const F32x8& x) {
  for (int i = 0; i < kLanes; ++i) p[i] = static_cast<Code>(std::nearbyint(x.v[i]));
}
inline F32x8 from_int32(const int32_t* p) {
  return lanes([&](int i) { return static_cast<float>(p[i]); });
}
inline float lane_sum(const F32x8& x) {
  const float* v = x.v;
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}
template <int n, int run>
void lane_sums(const F32x8* x, float* sums, ptrdiff_t stride) {
  for (int i = 0; i < n; ++i) sums[i / run * stride + i % run] = lane_sum(x[i]);
}
inline float lane_max(const F32x8& x) {
  float largest = x.v[0];
  for (int i = 1; i < kLanes; ++i) largest = x.v[i] > largest ? x.v[i] : largest;
  return largest;
}
inline F32x8 in_register(const F32x8& x) { return x; }
inline void prefetch(const void*) {}

inline void transpose(F32x8 (&rows)[kLanes]) {
  F32x8 columns[kLanes];
  for (int r = 0; r < kLanes; ++r) {
    for (int c = 0; c < kLanes; ++c) columns[c].v[r] = rows[r].v[c];
  }
  std::memcpy(rows, columns, sizeof columns);
}

inline void transpose_bytes(const int8_t* x, ptrdiff_t stride, int n, int8_t* columns,
                            ptrdiff_t column_stride) {
  for (int i = 0; i < 32; ++i) {
    for (int t = 0; t < 16; ++t) {
      columns[i * column_stride + t] = t < n ? x[t * stride + i] : int8_t{0};
    }
  }
}

struct I32x8 {
  int32_t v[kLanes];
};

template <typename Function>
I32x8 int_lanes(Function value) {
  I32x8 result;
  for (int i = 0; i < kLanes; ++i) result.v[i] = value(i);
  return result;
}
inline I32x8 splat_i32(int32_t x) {
  return int_lanes([&](int) { return x; });
}
inline I32x8 add(const I32x8& a, const I32x8& b) {
  return int_lanes([&](int i) { return a.v[i] + b.v[i]; });
}
inline I32x8 sub(const I32x8& a, const I32x8& b) {
  return int_lanes([&](int i) { return a.v[i] - b.v[i]; });
}
inline I32x8 max(const I32x8& a, const I32x8& b) {
  return int_lanes([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline void store(int32_t* p, const I32x8& x) { std::memcpy(p, x.v, sizeof x.v); }
inline I32x8 magnitude_bits(const F32x8& x) {
  return int_lanes([&](int i) { return static_cast<int32_t>(float_bits(x.v[i]) & 0x7fffffff); });
}
inline I32x8 greater(const F32x8& a, const F32x8& b) {
  return int_lanes([&](int i) { return a.v[i] > b.v[i] ? -1 : 0; });
}
inline I32x8 int16_pairs(const F32x8& first, const F32x8& second) {
  const auto rounded = [](float x) {
    return std::isfinite(x) ? static_cast<uint32_t>(std::lrint(x)) & 0xffff : 0u;
  };
  return int_lanes([&](int i) {
    return static_cast<int32_t>(rounded(first.v[i]) | rounded(second.v[i]) << 16);
  });
}

struct U8x32 {
  uint8_t v[32];
};

template <typename Function>
U8x32 byte_lanes(Function value) {
  U8x32 result;
  for (int i = 0; i < 32; ++i) result.v[i] = static_cast<uint8_t>(value(i));
  return result;
}
inline U8x32 splat_u8(int x) {
  return byte_lanes([&](int) { return x; });
}
inline U8x32 add(const U8x32& a, const U8x32& b) {
  return byte_lanes([&](int i) { return a.v[i] + b.v[i]; });
}
inline U8x32 bit_or(const U8x32& a, const U8x32& b) {
  return byte_lanes([&](int i) { return a.v[i] | b.v[i]; });
}
inline U8x32 shift_left(const U8x32& x, int bits) {
  return byte_lanes([&](int i) { return x.v[i] << bits; });
}
inline void store(uint8_t* p, const U8x32& x) { std::memcpy(p, x.v, sizeof x.v); }
inline U8x32 to_bytes(const I32x8 (&quarters)[4]) {
  return byte_lanes([&](int i) { return quarters[i / kLanes].v[i % kLanes]; });
}
inline void transpose_to(uint8_t* out, const U8x32 (&rows)[8]) {
  for (int i = 0; i < 32; ++i) {
    for (int r = 0; r < 8; ++r) *out++ = rows[r].v[i];
  }
}

template <int kSumTokens>
struct I16Sums {
  static constexpr int kTokens = kSumTokens;
  int16_t v[kTokens];

  static I16Sums widened(const int8_t* bytes) {
    I16Sums sums;
    for (int i = 0; i < kTokens; ++i) sums.v[i] = bytes[i];
    return sums;
  }
  I16Sums operator+(const I16Sums& other) const {
    I16Sums sums;
    for (int i = 0; i < kTokens; ++i) sums.v[i] = static_cast<int16_t>(v[i] + other.v[i]);
    return sums;
  }
  I16Sums operator-(const I16Sums& other) const {
    I16Sums sums;
    for (int i = 0; i < kTokens; ++i) sums.v[i] = static_cast<int16_t>(v[i] - other.v[i]);
    return sums;
  }
  void add_to(int32_t* totals) const {
    for (int i = 0; i < kTokens; ++i) totals[i] += v[i];
  }
};

struct F32x16 {
  float v[16];
};

inline F32x16 splat_like(const F32x16&, float x) {
  F32x16 result;
  for (float& value : result.v) value = x;
  return result;
}
inline F32x16 add(const F32x16& a, const F32x16& b) {
  F32x16 result;
  for (int i = 0; i < 16; ++i) result.v[i] = a.v[i] + b.v[i];
  return result;
}
inline F32x16 sub(const F32x16& a, const F32x16& b) {
  F32x16 result;
  for (int i = 0; i < 16; ++i) result.v[i] = a.v[i] - b.v[i];
  return result;
}

struct Int16Pairs {
  struct Vector {
    int32_t v[8];  // two int16, the first in the low half, or a sum
  };
  static constexpr int kLanes = 8;

  static Vector splat(int32_t pair) {
    Vector result;
    for (int32_t& lane : result.v) lane = pair;
    return result;
  }
  static Vector zero() { return splat(0); }
  static Vector widened(const int8_t* first, const int8_t* second) {
    Vector result;
    for (int i = 0; i < kLanes; ++i) {
      const uint32_t high = second ? static_cast<uint32_t>(second[i]) << 16 : 0;
      result.v[i] = static_cast<int32_t>((static_cast<uint32_t>(first[i]) & 0xffff) | high);
    }
    return result;
  }
  static Vector multiply_add(Vector sum, const Vector& a, const Vector& b) {
    const auto low = [](int32_t pair) { return static_cast<int16_t>(pair & 0xffff); };
    for (int i = 0; i < kLanes; ++i) {
      sum.v[i] += low(a.v[i]) * low(b.v[i]) + (a.v[i] >> 16) * (b.v[i] >> 16);
    }
    return sum;
  }
  static void store_floats(float* p, const Vector& sum) {
    for (int i = 0; i < kLanes; ++i) p[i] = static_cast<float>(sum.v[i]);
  }
};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
