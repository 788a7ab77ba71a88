// GEMM with int8 and int4 weights, as output heads have them, by dots of int16 pairs.
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/avx2/vectors.h"
#include "kernels/generic/int8_gemm-inl.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// Weights and activations as int16, for int8_gemm.
struct Int8Dots {
  // int32 budget: a lane gets a sixteenth of the columns as pairs, 2 * 127 * 16383 at most each,
  // and 512 of those stay below 2^31.
  static constexpr int kColumnsPerWidening = 512 * 16, kSets = 2;
  using Weights = __m256i;
  using Inputs = __m256i;
  using Sums = __m256i;

  template <int n>
  YOCOBIT_INLINE static Weights weights(const int8_t* p) {
    const auto* bytes = reinterpret_cast<const __m128i*>(p);
    return _mm256_cvtepi8_epi16(n == 16 ? _mm_loadu_si128(bytes) : _mm_loadl_epi64(bytes));
  }
  YOCOBIT_INLINE static Inputs inputs(const int16_t* p) { return load_bytes(p); }
  YOCOBIT_INLINE static Sums zero() { return _mm256_setzero_si256(); }
  YOCOBIT_INLINE static Sums add(Sums sums, Weights weights, Inputs inputs) {
    return dot_pairs(sums, weights, inputs);
  }
  static int64_t total(Sums sums) {
    const __m256i fours =
        _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_castsi256_si128(sums)),
                         _mm256_cvtepi32_epi64(_mm256_extracti128_si256(sums, 1)));
    const __m128i pair =
        _mm_add_epi64(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
    return _mm_cvtsi128_si64(pair) + _mm_extract_epi64(pair, 1);
  }
};

// The eight rows of a group by kTokens tokens. sum (code - 8) x = sum code x - 8 sum x.
template <int kTokens>
void int4_tile(const Int4Matrix& w, const Int16Rows& x, int group, int n, float* y,
               ptrdiff_t y_stride) {
  const __m256i low_four_bits = _mm256_set1_epi8(15);
  const int blocks_per_row = x.stride / kInt4Block;
  __m256 totals[kTokens];
  for (__m256& total : totals) total = _mm256_setzero_ps();
  for (int block = 0; block < w.n_blocks; ++block) {
    const size_t at = (static_cast<size_t>(group) * w.n_blocks + block) * kRowsPerGroup;
    __m256i sums[kTokens][kRowsPerGroup];
    for (int r = 0; r < kRowsPerGroup; ++r) {
      const uint8_t* codes = w.codes + (at + r) * kBlockBytes;
      if (r % 2 == 0) __builtin_prefetch(codes + kPrefetchBytes);
      const __m256i packed = load_bytes(codes);
      const __m256i low = _mm256_and_si256(packed, low_four_bits);
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(packed, 4), low_four_bits);
      const __m256i weights[4] = {_mm256_cvtepu8_epi16(_mm256_castsi256_si128(low)),
                                  _mm256_cvtepu8_epi16(_mm256_extracti128_si256(low, 1)),
                                  _mm256_cvtepu8_epi16(_mm256_castsi256_si128(high)),
                                  _mm256_cvtepu8_epi16(_mm256_extracti128_si256(high, 1))};
      for (int t = 0; t < kTokens; ++t) {
        const int16_t* inputs =
            x.codes + static_cast<size_t>(n + t) * x.stride + block * kInt4Block;
        const __m256i first = dot_pairs(_mm256_madd_epi16(weights[0], load_bytes(inputs)),
                                        weights[1], load_bytes(inputs + 16));
        const __m256i second = dot_pairs(_mm256_madd_epi16(weights[2], load_bytes(inputs + 32)),
                                         weights[3], load_bytes(inputs + 48));
        sums[t][r] = _mm256_add_epi32(first, second);
      }
    }
    const __m256 scales =
        _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w.scales + at)));
    for (int t = 0; t < kTokens; ++t) {
      const __m256i offset =
          _mm256_set1_epi32(8 * x.sums[static_cast<size_t>(n + t) * blocks_per_row + block]);
      const __m256i sum = _mm256_sub_epi32(lane_sums(sums[t]), offset);
      totals[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scales, totals[t]);
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    float out[kRowsPerGroup];
    _mm256_storeu_ps(out, _mm256_mul_ps(totals[t], _mm256_set1_ps(x.scales[n + t])));
    for (int r = 0; r < kRowsPerGroup && group * kRowsPerGroup + r < w.m; ++r) {
      y[(n + t) * y_stride + group * kRowsPerGroup + r] = out[r];
    }
  }
}

void int4_gemm(const Int4Matrix& w, const Int16Rows& x, int group_begin, int group_end, float* y,
               ptrdiff_t y_stride) {
  for (int group = group_begin; group < group_end; ++group) {
    int n = 0;
    for (; n + 4 <= x.n; n += 4) int4_tile<4>(w, x, group, n, y, y_stride);
    for (; n < x.n; ++n) int4_tile<1>(w, x, group, n, y, y_stride);
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
