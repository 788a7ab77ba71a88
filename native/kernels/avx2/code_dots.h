// Products of a tile of int8 or int4 codes with queries and with softmax weights; the contract is
// in generic/quantized_attention-inl.h. Codes are widened to int16, 16 at a time: four of them, of
// one row or position, are summed in two lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/generic/attention_tiles-inl.h"
#include "kernels/kv_tiles.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// Four of them in each 64 bits.
YOCOBIT_INLINE __m256i splat_four(const int16_t* p) {
  int64_t four;
  __builtin_memcpy(&four, p, sizeof four);
  return _mm256_set1_epi64x(four);
}

// 16 codes in offset binary: bytes, or one half of each.
template <FloatType type>
YOCOBIT_INLINE __m256i load_codes(const uint8_t* p, int half) {
  __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  if constexpr (type == FloatType::i4) {
    bytes = _mm_and_si128(half ? _mm_srli_epi16(bytes, 4) : bytes, _mm_set1_epi8(15));
  }
  return _mm256_cvtepu8_epi16(bytes);
}

// Sums of pairs of lanes of two vectors, in order, of factors by codes without their offset.
template <FloatType type>
YOCOBIT_INLINE __m256i joined(__m256i first, __m256i second, int32_t factor_sum) {
  const int32_t offset = (type == FloatType::i8 ? 128 : 8) * factor_sum;
  const __m256i sums = _mm256_permute4x64_epi64(_mm256_hadd_epi32(first, second), 0xd8);
  return _mm256_sub_epi32(sums, _mm256_set1_epi32(offset));
}

struct CodeDots {
  using QueryCodes = WholeCodes<kQueryCodes>;
  using WeightCodes = WholeCodes<kAttentionTile>;

  // Eight positions at a time.
  template <FloatType type, int kQueries>
  static void score(const QueryCodes* queries, const uint8_t* keys, int64_t row_bytes,
                    TilePrefetcher& next, int32_t* sums) {
    for (int j = 0; j < kAttentionTile; j += kLanes) {
      next.prefetch_part(j + kLanes, kAttentionTile);
      __m256i totals[kQueries][2];
      for (auto& query : totals) query[0] = query[1] = _mm256_setzero_si256();
      for (int64_t byte = 0; byte < row_bytes; byte += kBytesPerLane) {
        const uint8_t* from = keys + byte * kAttentionTile + j * kBytesPerLane;
        for (int half = 0; half < (type == FloatType::i4 ? 2 : 1); ++half) {
          const __m256i codes[2] = {load_codes<type>(from, half),
                                    load_codes<type>(from + 16, half)};
          const int64_t d = type == FloatType::i4 ? first_code(byte) + 8 * half : byte;
          for (int i = 0; i < kQueries; ++i) {
            const __m256i query = splat_four(queries[i].codes + d);
            for (int v = 0; v < 2; ++v) {
              totals[i][v] = _mm256_add_epi32(totals[i][v], _mm256_madd_epi16(codes[v], query));
            }
          }
        }
      }
      for (int i = 0; i < kQueries; ++i) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + i * kAttentionTile + j),
                            joined<type>(totals[i][0], totals[i][1], queries[i].sum));
      }
    }
  }

  // Eight codes of each position at a time.
  template <FloatType type, int kQueries>
  static void add(const WeightCodes* weights, const uint8_t* values, int64_t row_bytes, int D,
                  TilePrefetcher& next, int32_t* sums) {
    constexpr int kHalves = type == FloatType::i4 ? 2 : 1;
    for (int64_t byte = 0; byte < row_bytes; byte += kLanes) {
      next.prefetch_part(byte + kLanes, row_bytes);
      for (int half = 0; half < kHalves; ++half) {
        const int64_t d = kHalves * byte + kLanes * half;
        if (d == D) break;  // a block that is not whole
        __m256i totals[kQueries][2];
        for (auto& query : totals) query[0] = query[1] = _mm256_setzero_si256();
        for (int j = 0; j < kAttentionTile; j += kBytesPerLane) {
          const uint8_t* from = values + (j / kBytesPerLane * row_bytes + byte) * kBytesPerLane;
          const __m256i codes[2] = {load_codes<type>(from, half),
                                    load_codes<type>(from + 16, half)};
          for (int i = 0; i < kQueries; ++i) {
            const __m256i weight = splat_four(weights[i].codes + j);
            for (int v = 0; v < 2; ++v) {
              totals[i][v] = _mm256_add_epi32(totals[i][v], _mm256_madd_epi16(codes[v], weight));
            }
          }
        }
        for (int i = 0; i < kQueries; ++i) {
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + i * D + d),
                              joined<type>(totals[i][0], totals[i][1], weights[i].sum));
        }
      }
    }
  }
};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
