// Products of a tile of int8 or int4 codes with queries and with softmax weights; the contract is
// in generic/quantized_attention-inl.h. VNNI sums four products of an unsigned and a signed byte in
// each lane: codes in offset binary, and 15-bit factors in two parts of 8.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/avx2/byte_factors.h"
#include "kernels/avx512/vectors.h"
#include "kernels/generic/attention_tiles-inl.h"
#include "kernels/kv_tiles.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// Four of them in each lane.
YOCOBIT_INLINE __m512i splat_four(const int8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, sizeof four);
  return _mm512_set1_epi32(four);
}

// Loops over sums are unrolled by pragma: otherwise GCC keeps them in memory.
template <int kQueries, int kVectors>
YOCOBIT_INLINE void clear(__m512i (&totals)[kQueries][kVectors][kParts]) {
#pragma GCC unroll 4
  for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      totals[i][v][0] = totals[i][v][1] = _mm512_setzero_si512();
    }
  }
}

YOCOBIT_INLINE __m512i half_codes(__m512i bytes, int half) {
  return _mm512_and_si512(half ? _mm512_srli_epi16(bytes, 4) : bytes, _mm512_set1_epi8(15));
}

// From sums of the parts by codes in offset binary to those of the factors by codes.
template <FloatType type>
YOCOBIT_INLINE __m512i joined(const __m512i* parts, int32_t factor_sum) {
  const int32_t offset = (type == FloatType::i8 ? 128 : 8) * factor_sum;
  const __m512i both = _mm512_add_epi32(_mm512_slli_epi32(parts[0], 7), parts[1]);
  return _mm512_sub_epi32(both, _mm512_set1_epi32(offset));
}

struct CodeDots {
  using QueryCodes = ByteFactors<kQueryCodes>;
  using WeightCodes = ByteFactors<kAttentionTile>;

  template <FloatType type, int kQueries>
  static void score(const QueryCodes* queries, const uint8_t* keys, int64_t row_bytes,
                    TilePrefetcher& next, int32_t* sums) {
    constexpr int kVectors = 2;  // of 16 positions
    __m512i totals[kQueries][kVectors][kParts];
    clear(totals);
    for (int64_t byte = 0; byte < row_bytes; byte += kBytesPerLane, keys += kVectors * 64) {
      next.prefetch_lines(byte * kAttentionTile);
      const __m512i bytes[kVectors] = {_mm512_loadu_si512(keys), _mm512_loadu_si512(keys + 64)};
#pragma GCC unroll 4
      for (int half = 0; half < (type == FloatType::i4 ? 2 : 1); ++half) {
        const int64_t d = type == FloatType::i4 ? first_code(byte) + 8 * half : byte;
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const __m512i key = type == FloatType::i4 ? half_codes(bytes[v], half) : bytes[v];
#pragma GCC unroll 4
          for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 4
            for (int part = 0; part < kParts; ++part) {
              totals[i][v][part] =
                  dot_bytes(totals[i][v][part], key, splat_four(queries[i].parts[part] + d));
            }
          }
        }
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        _mm512_storeu_si512(sums + i * kAttentionTile + 16 * v,
                            joined<type>(totals[i][v], queries[i].sum));
      }
    }
  }

  // 32 codes of each position at a time.
  template <FloatType type, int kQueries>
  static void add(const WeightCodes* weights, const uint8_t* values, int64_t row_bytes, int D,
                  TilePrefetcher& next, int32_t* sums) {
    constexpr int kVectors = 2, kStep = type == FloatType::i4 ? 16 : 32;  // bytes of a row
    for (int64_t byte = 0; byte < row_bytes; byte += kStep) {
      const int left = static_cast<int>(row_bytes - byte);
      const __mmask16 masks[kVectors] = {lanes_below(left), lanes_below(left - 16)};
      __m512i totals[kQueries][kVectors][kParts];
      clear(totals);
      for (int j = 0; j < kAttentionTile; j += kBytesPerLane) {
        const int64_t at = (j / kBytesPerLane * row_bytes + byte) * kBytesPerLane;
        const uint8_t* from = values + at;
        next.prefetch_lines(at);
        __m512i codes[kVectors];
        if constexpr (type == FloatType::i4) {
          const __m512i bytes = _mm512_maskz_loadu_epi32(masks[0], from);
#pragma GCC unroll 4
          for (int half = 0; half < kVectors; ++half) codes[half] = half_codes(bytes, half);
        } else {
          codes[0] = _mm512_maskz_loadu_epi32(masks[0], from);
          codes[1] = _mm512_maskz_loadu_epi32(masks[1], from + 64);
        }
#pragma GCC unroll 4
        for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 4
          for (int part = 0; part < kParts; ++part) {
            const __m512i weight = splat_four(weights[i].parts[part] + j);
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
              totals[i][v][part] = dot_bytes(totals[i][v][part], codes[v], weight);
            }
          }
        }
      }
#pragma GCC unroll 4
      for (int i = 0; i < kQueries; ++i) {
        __m512i all[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) all[v] = joined<type>(totals[i][v], weights[i].sum);
        if constexpr (type == FloatType::i4) {  // blocks of low and of high halves take turns
          const __m512i low = all[0], high = all[1];
          all[0] = _mm512_shuffle_i64x2(low, high, _MM_SHUFFLE(1, 0, 1, 0));
          all[1] = _mm512_shuffle_i64x2(low, high, _MM_SHUFFLE(3, 2, 3, 2));
        }
        int32_t* to = sums + i * D + (type == FloatType::i4 ? 2 * byte : byte);
        const int n = D - static_cast<int>(to - (sums + i * D));
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          _mm512_mask_storeu_epi32(to + 16 * v, lanes_below(n - 16 * v), all[v]);
        }
      }
    }
  }
};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
