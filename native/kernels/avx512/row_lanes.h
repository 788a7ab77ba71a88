// Vectors whose lanes are the rows of two groups; the contract is in
// generic/group_scaled_gemm-inl.h. VNNI sums four products of an unsigned and a signed byte in each
// lane; codes stay in their bit fields of the byte.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/avx512/vectors.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

struct RowLanes {
  using Floats = F32xN;
  using Sums = __m512i;
  static constexpr int kGroups = 2, kSums = 24, kInputs = 4;

  template <int kBits>
  static constexpr int position(int field) {
    return field * kBits;
  }

  YOCOBIT_INLINE static __m512i load_codes(const uint8_t* first, const uint8_t* second) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(load_bytes(first)), load_bytes(second), 1);
  }
  template <int kBits>
  YOCOBIT_INLINE static __m512i field(__m512i codes, int field) {
    const int mask = ((1 << kBits) - 1) << position<kBits>(field);
    return _mm512_and_si512(codes, _mm512_set1_epi8(static_cast<char>(mask)));
  }

  YOCOBIT_INLINE static Sums start(int32_t offset) { return _mm512_set1_epi32(offset); }
  // Four bytes of x in every lane, read by the instruction itself.
  YOCOBIT_INLINE static void multiply_add(Sums& sums, __m512i codes, const int8_t* x) {
    using Four [[gnu::may_alias, gnu::aligned(1)]] = int32_t;
    asm("vpdpbusd %2%{1to16%}, %1, %0"
        : "+v"(sums)
        : "v"(codes), "m"(*reinterpret_cast<const Four*>(x)));
  }
  YOCOBIT_INLINE static __m512i int32_sums(const Sums& sums, int32_t) { return sums; }

  YOCOBIT_INLINE static __m512i splat(int32_t x) { return _mm512_set1_epi32(x); }
  YOCOBIT_INLINE static __m512i add(__m512i a, __m512i b) { return _mm512_add_epi32(a, b); }
  YOCOBIT_INLINE static __m512i times_128(__m512i x) { return _mm512_slli_epi32(x, 7); }
  YOCOBIT_INLINE static Floats to_floats(__m512i x) { return {_mm512_cvtepi32_ps(x)}; }

  YOCOBIT_INLINE static Floats load_scales(const uint16_t* first, const uint16_t* second) {
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(first));
    const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(second));
    return {_mm512_cvtph_ps(_mm256_set_m128i(high, low))};
  }
  YOCOBIT_INLINE static Floats load_floats(const float* p, int n) {
    return {_mm512_maskz_loadu_ps(lanes_below(n), p)};
  }
  YOCOBIT_INLINE static void store_floats(float* p, const Floats& x, int n) {
    _mm512_mask_storeu_ps(p, lanes_below(n), x.v);
  }
};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
