// Vectors whose lanes are the rows of a group; the contract is in generic/group_scaled_gemm-inl.h.
// vpmaddubsw sums two products of an unsigned and a signed byte in each int16; codes stay in their
// bit fields of the nibble.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/generic/group_scaled_gemm-inl.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

struct RowLanes : OneGroup {
  // int16 budget: 8 units of two products of a code in its field (at most 12) and an int8 reach
  // 24576.
  using Sums = __m256i;
  static constexpr int kSums = 12, kInputs = 3;

  template <int kBits>
  static constexpr int position(int field) {
    return field * kBits % 4;
  }

  YOCOBIT_INLINE static __m256i load_codes(const uint8_t* codes, const uint8_t*) {
    return load_bytes(codes);
  }
  template <int kBits>
  YOCOBIT_INLINE static __m256i field(__m256i codes, int field) {
    const int mask = ((1 << kBits) - 1) << position<kBits>(field);
    const __m256i nibbles = field * kBits < 4 ? codes : _mm256_srli_epi16(codes, 4);
    return _mm256_and_si256(nibbles, _mm256_set1_epi8(static_cast<char>(mask)));
  }

  YOCOBIT_INLINE static Sums start(int32_t) { return _mm256_setzero_si256(); }
  YOCOBIT_INLINE static void multiply_add(Sums& sums, __m256i codes, const int8_t* x) {
    int32_t four;
    __builtin_memcpy(&four, x, sizeof four);
    sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(codes, _mm256_set1_epi32(four)));
    asm("" : "+x"(sums));  // otherwise GCC reorders the additions and spills
  }
  YOCOBIT_INLINE static __m256i int32_sums(const Sums& sums, int32_t offset) {
    return _mm256_add_epi32(_mm256_madd_epi16(sums, _mm256_set1_epi16(1)),
                            _mm256_set1_epi32(offset));
  }

  YOCOBIT_INLINE static __m256i splat(int32_t x) { return _mm256_set1_epi32(x); }
  YOCOBIT_INLINE static __m256i add(__m256i a, __m256i b) { return _mm256_add_epi32(a, b); }
  YOCOBIT_INLINE static __m256i times_128(__m256i x) { return _mm256_slli_epi32(x, 7); }
  YOCOBIT_INLINE static Floats to_floats(__m256i x) { return {_mm256_cvtepi32_ps(x)}; }
};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
