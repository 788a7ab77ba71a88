// The operations of simd/lanes.h for x86 with AVX-512 (F, BW, DQ, VL) and VNNI: eight lanes are
// those of AVX2, in 256-bit registers; wider vectors are here.
#pragma once

#define YOCOBIT_HAS_WIDE_LANES

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "simd/avx2.h"
#include "simd/target.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

constexpr int kRegisters = 32;

inline F32x8 rounding_error(const F32x8& x) {
  return {_mm256_reduce_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

struct F32xN {
  __m512 v;
};
constexpr int kWideLanes = 16;
using F32x16 = F32xN;

inline F32xN load_wide(const float* p) { return {_mm512_loadu_ps(p)}; }
inline F32x8 load_like(const F32x8&, const float* p) { return load(p); }
inline F32xN load_like(const F32xN&, const float* p) { return load_wide(p); }
inline F32xN wide_from_int32(const int32_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_loadu_si512(p))};
}
inline void store(float* p, const F32xN& x) { _mm512_storeu_ps(p, x.v); }
inline F32xN splat_like(const F32xN&, float x) { return {_mm512_set1_ps(x)}; }
inline F32xN fma(const F32xN& a, const F32xN& b, const F32xN& c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
inline F32xN mul(const F32xN& a, const F32xN& b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32xN add(const F32xN& a, const F32xN& b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32xN sub(const F32xN& a, const F32xN& b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32xN min(const F32xN& a, const F32xN& b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32xN max(const F32xN& a, const F32xN& b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32xN abs(const F32xN& x) { return {_mm512_abs_ps(x.v)}; }
inline F32xN power_of_two(const F32xN& n) {
  const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23))};
}
inline void store_codes(int8_t* p, const F32xN& x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x.v)));
}
inline void store_codes(int16_t* p, const F32xN& x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x.v)));
}
inline F32x8 low_half(const F32xN& x) { return {_mm512_castps512_ps256(x.v)}; }
inline F32x8 high_half(const F32xN& x) { return {_mm512_extractf32x8_ps(x.v, 1)}; }
inline float lane_max(const F32xN& x) { return lane_max(max(low_half(x), high_half(x))); }
inline float lane_sum(const F32xN& x) { return lane_sum(add(low_half(x), high_half(x))); }

template <int kSumTokens>
struct I16Sums {
  static_assert(kSumTokens == 32, "one register");
  static constexpr int kTokens = kSumTokens;
  __m512i all;

  static I16Sums widened(const int8_t* bytes) {
    return {_mm512_cvtepi8_epi16(_mm256_load_si256(reinterpret_cast<const __m256i*>(bytes)))};
  }
  I16Sums operator+(const I16Sums& other) const { return {_mm512_add_epi16(all, other.all)}; }
  I16Sums operator-(const I16Sums& other) const { return {_mm512_sub_epi16(all, other.all)}; }
  void add_to(int32_t* totals) const {
    auto* total = reinterpret_cast<__m512i*>(totals);
    const __m512i low = _mm512_cvtepi16_epi32(_mm512_castsi512_si256(all));
    const __m512i high = _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(all, 1));
    total[0] = _mm512_add_epi32(total[0], low);
    total[1] = _mm512_add_epi32(total[1], high);
  }
};

struct Int16Pairs {
  using Vector = __m512i;
  static constexpr int kLanes = 16;

  static Vector zero() { return _mm512_setzero_si512(); }
  static Vector splat(int32_t pair) { return _mm512_set1_epi32(pair); }
  static Vector widened(const int8_t* first, const int8_t* second) {
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(first));
    const __m128i high =
        second ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(second)) : _mm_setzero_si128();
    return _mm512_cvtepi8_epi16(
        _mm256_set_m128i(_mm_unpackhi_epi8(low, high), _mm_unpacklo_epi8(low, high)));
  }
  static Vector multiply_add(Vector sum, Vector a, Vector b) {
    // Not the intrinsic: of 24 sums GCC 12 copies and stores each in every iteration.
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
  }
  static void store_floats(float* p, Vector sum) { _mm512_storeu_ps(p, _mm512_cvtepi32_ps(sum)); }
};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
