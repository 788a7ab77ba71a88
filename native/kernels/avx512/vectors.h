// Sums, masks and transposes of 512-bit registers that several AVX-512 kernels use.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/formats.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// In each 128 bits the sums of four lanes of x[0] to x[3].
YOCOBIT_INLINE __m512i quarter_sums(const __m512i* x) {
  __m512i pairs[2];
  for (int i = 0; i < 2; ++i) {
    pairs[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]),
                                _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]));
  }
  return _mm512_add_epi32(_mm512_unpacklo_epi64(pairs[0], pairs[1]),
                          _mm512_unpackhi_epi64(pairs[0], pairs[1]));
}

// Sums of the 16 lanes of eight vectors, the i-th in lane i.
YOCOBIT_INLINE __m256i lane_sums(const __m512i* x) {
  const __m512i fours[2] = {quarter_sums(x), quarter_sums(x + 4)};
  // Quarters of rows 0-3 and of rows 4-7, added by halves.
  const __m512i eight =
      _mm512_add_epi32(_mm512_shuffle_i64x2(fours[0], fours[1], _MM_SHUFFLE(1, 0, 1, 0)),
                       _mm512_shuffle_i64x2(fours[0], fours[1], _MM_SHUFFLE(3, 2, 3, 2)));
  const __m512i ordered = _mm512_shuffle_i64x2(eight, eight, _MM_SHUFFLE(3, 1, 2, 0));
  return _mm256_add_epi32(_mm512_castsi512_si256(ordered), _mm512_extracti64x4_epi64(ordered, 1));
}

// The first n of eight rows, of which there may be more or none.
inline __mmask8 rows_below(int n) {
  return static_cast<__mmask8>(n >= kRowsPerGroup ? 0xff : n > 0 ? (1 << n) - 1 : 0);
}

// Not the intrinsic: GCC 12 copies sums before and after it.
YOCOBIT_INLINE __m512i dot_bytes(__m512i sum, __m512i bytes, __m512i factors) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(bytes), "v"(factors));
  return sum;
}

// The first n of 16 lanes, of which there may be more or none.
YOCOBIT_INLINE __mmask16 lanes_below(int n) {
  return static_cast<__mmask16>(n >= 16 ? 0xffff : n > 0 ? (1 << n) - 1 : 0);
}

// Two groups of rows, transposed so that each lane accumulates one output row: vector c holds bytes
// 4c to 4c + 3 of a block of each. Lanes are rows 0-3 of both groups, then rows 4-7 of both.
YOCOBIT_INLINE void transpose_rows(const uint8_t* first, const uint8_t* second, __m512i* columns) {
  __m512i pairs[8], fours[8];
  for (int r = 0; r < 8; r += 2) {
    __m512i rows[2];
    for (int i = 0; i < 2; ++i) {
      const auto* low = reinterpret_cast<const __m256i*>(first + (r + i) * kBlockBytes);
      const auto* high = reinterpret_cast<const __m256i*>(second + (r + i) * kBlockBytes);
      rows[i] = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(low)),
                                   _mm256_loadu_si256(high), 1);
    }
    pairs[r] = _mm512_unpacklo_epi32(rows[0], rows[1]);
    pairs[r + 1] = _mm512_unpackhi_epi32(rows[0], rows[1]);
  }
  for (int half = 0; half < 2; ++half) {  // rows 0-3, rows 4-7
    for (int i = 0; i < 2; ++i) {
      const __m512i low = pairs[4 * half + i], high = pairs[4 * half + 2 + i];
      fours[4 * half + 2 * i] = _mm512_unpacklo_epi64(low, high);
      fours[4 * half + 2 * i + 1] = _mm512_unpackhi_epi64(low, high);
    }
  }
  for (int c = 0; c < 4; ++c) {
    columns[c] = _mm512_shuffle_i64x2(fours[c], fours[c + 4], _MM_SHUFFLE(2, 0, 2, 0));
    columns[c + 4] = _mm512_shuffle_i64x2(fours[c], fours[c + 4], _MM_SHUFFLE(3, 1, 3, 1));
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
