// Vectors whose lanes are the rows of a group; the contract is in generic/group_scaled_gemm-inl.h.
// VNNI sums four products of an unsigned and a signed byte in each lane; codes stay in their bit
// fields of the byte.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/avx2/row_lanes.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

struct VnniRowLanes : RowLanes {
  static constexpr int kSums = 12, kInputs = 3;

  template <int kBits>
  static constexpr int position(int field) {
    return field * kBits;
  }
  template <int kBits>
  YOCOBIT_INLINE static __m256i field(__m256i codes, int field) {
    const int mask = ((1 << kBits) - 1) << position<kBits>(field);
    return _mm256_and_si256(codes, _mm256_set1_epi8(static_cast<char>(mask)));
  }

  YOCOBIT_INLINE static Sums start(int32_t offset) { return _mm256_set1_epi32(offset); }
  YOCOBIT_INLINE static void multiply_add(Sums& sums, __m256i codes, const int8_t* x) {
    int32_t four;
    __builtin_memcpy(&four, x, sizeof four);
    sums = dot_bytes(sums, codes, _mm256_set1_epi32(four));
  }
  YOCOBIT_INLINE static __m256i int32_sums(const Sums& sums, int32_t) { return sums; }
};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
