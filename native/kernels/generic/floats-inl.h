// Shared by several kernels: the exponential over lanes, and loads of every stored type.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, half to even

// exp(x) within 2 ulp for x in [-87, 88]; clamped outside, so that very negative x gives
// about 0 and NaN cannot reach the integer conversion.
template <typename Floats>
Floats exponential(const Floats& x) {
  const Floats clamped = min(max(x, splat_like(x, -87.0f)), splat_like(x, 88.0f));
  const Floats n =
      sub(fma(clamped, splat_like(x, 1.44269504f), splat_like(x, kRound)), splat_like(x, kRound));
  Floats r = fma(n, splat_like(x, -0.693359375f), clamped);  // ln 2 in two parts (Cephes)
  r = fma(n, splat_like(x, 2.12194440e-4f), r);
  Floats p = splat_like(x, 1.9875691500e-4f);
  p = fma(p, r, splat_like(x, 1.3981999507e-3f));
  p = fma(p, r, splat_like(x, 8.3334519073e-3f));
  p = fma(p, r, splat_like(x, 4.1665795894e-2f));
  p = fma(p, r, splat_like(x, 1.6666665459e-1f));
  p = fma(p, r, splat_like(x, 5.0000001201e-1f));
  p = add(fma(p, mul(r, r), r), splat_like(x, 1.0f));
  return mul(p, power_of_two(n));
}

inline float exponential(float x) {
  float v[kLanes];
  store(v, exponential(splat(x)));
  return v[0];
}

template <FloatType type>
F32x8 load_as(const void* values, size_t i) {
  if constexpr (type == FloatType::f32) return load(static_cast<const float*>(values) + i);
  if constexpr (type == FloatType::f16) return load_f16(static_cast<const uint16_t*>(values) + i);
  if constexpr (type == FloatType::i8) return load_i8(static_cast<const int8_t*>(values) + i);
  if constexpr (type == FloatType::i4) {
    return load_i4(static_cast<const uint8_t*>(values) + i / 16 * 8, i / 8 % 2);
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
