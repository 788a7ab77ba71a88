// The operations of simd/lanes.h in 256-bit registers with AVX-VNNI: those of AVX2, except that one
// instruction multiplies pairs of int16 and adds to the sum. The same for four bytes is here too.
//
// Not the intrinsics: GCC 12 copies sums before and after them. The prefix selects the encoding of
// AVX-VNNI, or that of AVX-512 VNNI with YOCOBIT_EVEX, for benchmarks of the emulated family on
// CPUs that have only that one. Without it, the emulated family computes the same with AVX2.
#pragma once

#define YOCOBIT_HAS_VNNI

#include <immintrin.h>

#include "simd/target.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

#if defined(YOCOBIT_EMULATED) && !defined(YOCOBIT_EVEX)

YOCOBIT_INLINE __m256i dot_pairs(__m256i sum, __m256i a, __m256i b) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}

YOCOBIT_INLINE __m256i dot_bytes(__m256i sum, __m256i bytes, __m256i factors) {
  const __m256i even = _mm256_and_si256(bytes, _mm256_set1_epi16(255));
  sum = dot_pairs(sum, even, _mm256_srai_epi16(_mm256_slli_epi16(factors, 8), 8));
  return dot_pairs(sum, _mm256_srli_epi16(bytes, 8), _mm256_srai_epi16(factors, 8));
}

#else

#ifdef YOCOBIT_EMULATED
#define YOCOBIT_ENCODING "%{evex%} "
#else
#define YOCOBIT_ENCODING "%{vex%} "
#endif

// Each lane: sum + a[0] b[0] + a[1] b[1], of int16.
YOCOBIT_INLINE __m256i dot_pairs(__m256i sum, __m256i a, __m256i b) {
  asm(YOCOBIT_ENCODING "vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
  return sum;
}

// Each lane: sum + four products of an unsigned byte and a signed factor.
YOCOBIT_INLINE __m256i dot_bytes(__m256i sum, __m256i bytes, __m256i factors) {
  asm(YOCOBIT_ENCODING "vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(bytes), "x"(factors));
  return sum;
}

#endif

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET

#include "simd/avx2.h"
