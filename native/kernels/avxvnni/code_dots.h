// Products of a tile of int8 or int4 codes with queries and with softmax weights; the contract is
// in generic/quantized_attention-inl.h. VNNI sums four products of an unsigned and a signed byte in
// each lane: codes in offset binary, and 15-bit factors in two parts of 8.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/avx2/byte_factors.h"
#include "kernels/generic/attention_tiles-inl.h"
#include "kernels/kv_tiles.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// Sums of kVectors vectors of eight positions or columns by each query and part.
template <int kQueries, int kVectors>
struct CodeSums {
  __m256i totals[kQueries][kVectors][kParts];

  // Loops over sums are unrolled by pragma: otherwise GCC keeps them in memory.
  YOCOBIT_INLINE CodeSums() {
#pragma GCC unroll 4
    for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        totals[i][v][0] = totals[i][v][1] = _mm256_setzero_si256();
      }
    }
  }

  // The codes at `from`: bytes, or one half of each; by the factors of each query from `first` on.
  template <FloatType type, typename Factors>
  YOCOBIT_INLINE void add(const uint8_t* from, int half, const Factors* factors, int64_t first) {
    __m256i codes[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      codes[v] = load_bytes(from + v * kLanes * kBytesPerLane);
      if constexpr (type == FloatType::i4) {
        if (half) codes[v] = _mm256_srli_epi16(codes[v], 4);
        codes[v] = _mm256_and_si256(codes[v], _mm256_set1_epi8(15));
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 2
      for (int part = 0; part < kParts; ++part) {
        int32_t four;
        __builtin_memcpy(&four, factors[i].parts[part] + first, sizeof four);
        const __m256i factor = _mm256_set1_epi32(four);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v)
          totals[i][v][part] = dot_bytes(totals[i][v][part], codes[v], factor);
      }
    }
  }

  // From sums of the parts by codes in offset binary to those of the factors by codes.
  template <FloatType type>
  YOCOBIT_INLINE __m256i joined(int i, int v, int32_t factor_sum) const {
    const int32_t offset = (type == FloatType::i8 ? 128 : 8) * factor_sum;
    const __m256i both = _mm256_add_epi32(_mm256_slli_epi32(totals[i][v][0], 7), totals[i][v][1]);
    return _mm256_sub_epi32(both, _mm256_set1_epi32(offset));
  }
};

struct CodeDots {
  using QueryCodes = ByteFactors<kQueryCodes>;
  using WeightCodes = ByteFactors<kAttentionTile>;

  // Vectors whose sums fit into the registers.
  static constexpr int vectors(int n_queries) {
    return n_queries == 1 ? 4 : n_queries == 4 ? 1 : 2;
  }

  template <FloatType type, int kQueries>
  static void score(const QueryCodes* queries, const uint8_t* keys, int64_t row_bytes,
                    TilePrefetcher& next, int32_t* sums) {
    constexpr int kVectors = vectors(kQueries), kStep = kVectors * kLanes;
    for (int j = 0; j < kAttentionTile; j += kStep) {
      next.prefetch_part(j + kStep, kAttentionTile);
      CodeSums<kQueries, kVectors> dots;
      for (int64_t byte = 0; byte < row_bytes; byte += kBytesPerLane) {
        const uint8_t* from = keys + byte * kAttentionTile + j * kBytesPerLane;
        for (int half = 0; half < (type == FloatType::i4 ? 2 : 1); ++half) {
          const int64_t d = type == FloatType::i4 ? first_code(byte) + 8 * half : byte;
          dots.template add<type>(from, half, queries, d);
        }
      }
#pragma GCC unroll 4
      for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          store(sums + i * kAttentionTile + j + v * kLanes,
                I32x8{dots.template joined<type>(i, v, queries[i].sum)});
        }
      }
    }
  }

  template <FloatType type, int kQueries>
  static void add(const WeightCodes* weights, const uint8_t* values, int64_t row_bytes, int D,
                  TilePrefetcher& next, int32_t* sums) {
    constexpr int kVectors = vectors(kQueries);
    int64_t byte = 0;
    const auto add_rows = [&]<int kNow>() {
      for (; byte + kNow * kLanes <= row_bytes; byte += kNow * kLanes) {
        next.prefetch_part(byte + kNow * kLanes, row_bytes);
        add_columns<type, kQueries, kNow>(weights, values, row_bytes, byte, D, sums);
      }
    };
    add_rows.template operator()<kVectors>();
    if constexpr (kVectors > 2) add_rows.template operator()<2>();
    if constexpr (kVectors > 1) add_rows.template operator()<1>();
  }

 private:
  // kVectors * 8 bytes of each position.
  template <FloatType type, int kQueries, int kVectors>
  YOCOBIT_INLINE static void add_columns(const WeightCodes* weights, const uint8_t* values,
                                         int64_t row_bytes, int64_t byte, int D, int32_t* sums) {
    constexpr int kHalves = type == FloatType::i4 ? 2 : 1;
    for (int half = 0; half < kHalves; ++half) {
      CodeSums<kQueries, kVectors> dots;
      for (int j = 0; j < kAttentionTile; j += kBytesPerLane) {
        const uint8_t* from = values + (j / kBytesPerLane * row_bytes + byte) * kBytesPerLane;
        dots.template add<type>(from, half, weights, j);
      }
#pragma GCC unroll 4
      for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const int64_t d = kHalves * (byte + v * kLanes) + kLanes * half;
          if (d == D) break;  // a block that is not whole
          store(sums + i * D + d, I32x8{dots.template joined<type>(i, v, weights[i].sum)});
        }
      }
    }
  }
};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
