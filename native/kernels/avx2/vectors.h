// Sums over the lanes of 256-bit registers that several kernels use.
#pragma once

#include <immintrin.h>

#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// Sums of the lanes of eight vectors, the i-th in lane i.
YOCOBIT_INLINE __m256i lane_sums(const __m256i* x) {
  const __m256i low =
      _mm256_hadd_epi32(_mm256_hadd_epi32(x[0], x[1]), _mm256_hadd_epi32(x[2], x[3]));
  const __m256i high =
      _mm256_hadd_epi32(_mm256_hadd_epi32(x[4], x[5]), _mm256_hadd_epi32(x[6], x[7]));
  return _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20),
                          _mm256_permute2x128_si256(low, high, 0x31));
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
