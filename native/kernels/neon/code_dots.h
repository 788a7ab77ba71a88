// Products of a tile of int8 or int4 codes with queries and with softmax weights; the contract is
// in generic/quantized_attention-inl.h. 15-bit factors are in two int8 parts, int8 codes without
// their offset, int4 codes in offset binary.
//
// Parts are those of a type of the family:
//   Factors<kSize>                     Codes and what products need of them
//   Operand load(factors, k)           eight factors from k on
//   kInt8Offset                        of int8 codes as products take them, 0 or 128
//   Bytes bytes<type>(codes)           16 codes in offset binary, with that offset if they are int8
//   multiply_add(sums, first, second, factors)
//     add the products of eight factors and eight codes of each of four lanes: the first four of
//     each in `first`, the others in `second`; sums are two vectors
//   joined(sums)                       the int32 sums of the lanes
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "kernels/generic/attention_tiles-inl.h"
#include "kernels/kv_tiles.h"
#include "kernels/neon/dots.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// 16 codes in offset binary: bytes, or one half of each.
template <FloatType type>
YOCOBIT_INLINE uint8x16_t load_codes(const uint8_t* p, int half) {
  const uint8x16_t bytes = vld1q_u8(p);
  if constexpr (type == FloatType::i8) return bytes;
  return half ? vshrq_n_u8(bytes, 4) : vandq_u8(bytes, vdupq_n_u8(15));
}

// By sdot.
struct DotParts {
  template <int kSize>
  struct Factors : Codes<kSize> {
    alignas(16) int8_t high[(kSize + 15) / 16 * 16], low[(kSize + 15) / 16 * 16];

    // May read up to 8 codes beyond n, which has no effect.
    void split(int n) {
      for (int i = 0; i < n; i += 16) {
        const Parts parts = YOCOBIT_TARGET::split(this->codes + i);
        vst1q_s8(high + i, parts.high);
        vst1q_s8(low + i, parts.low);
      }
    }
  };
  struct Operand {
    int8x8_t high, low;
  };

  template <int kSize>
  YOCOBIT_INLINE static Operand load(const Factors<kSize>& factors, int64_t k) {
    return {vld1_s8(factors.high + k), vld1_s8(factors.low + k)};
  }
  static constexpr int kInt8Offset = 0;
  template <FloatType type>
  YOCOBIT_INLINE static int8x16_t bytes(uint8x16_t codes) {
    return as_signed(type == FloatType::i8 ? veorq_u8(codes, vdupq_n_u8(0x80)) : codes);
  }
  YOCOBIT_INLINE static void multiply_add(int32x4_t (&sums)[2], int8x16_t first, int8x16_t second,
                                          const Operand& factors) {
    sums[0] = vdotq_lane_s32(sums[0], first, factors.high, 0);
    sums[1] = vdotq_lane_s32(sums[1], first, factors.low, 0);
    sums[0] = vdotq_lane_s32(sums[0], second, factors.high, 1);
    sums[1] = vdotq_lane_s32(sums[1], second, factors.low, 1);
  }
  YOCOBIT_INLINE static int32x4_t joined(const int32x4_t (&sums)[2]) {
    return YOCOBIT_TARGET::joined(sums[0], sums[1]);
  }
};

// Sums of kQueries factors by kVectors vectors of four lanes.
template <typename Parts, FloatType type, int kQueries, int kVectors>
struct DotSums {
  int32x4_t totals[kQueries][kVectors][2];

  YOCOBIT_INLINE DotSums() {
#pragma GCC unroll 4
    for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) totals[i][v][0] = totals[i][v][1] = vdupq_n_s32(0);
    }
  }

  // Eight factors of each query, from k on, by eight codes of each lane: four of them at `first`,
  // four at `second`.
  template <typename FactorCodes>
  YOCOBIT_INLINE void multiply_add(const FactorCodes* factors, int64_t k, const uint8_t* first,
                                   const uint8_t* second, int half) {
    typename Parts::Operand xs[kQueries];
#pragma GCC unroll 4
    for (int i = 0; i < kQueries; ++i) xs[i] = Parts::load(factors[i], k);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const auto low = Parts::template bytes<type>(load_codes<type>(first + 16 * v, half));
      const auto high = Parts::template bytes<type>(load_codes<type>(second + 16 * v, half));
#pragma GCC unroll 4
      for (int i = 0; i < kQueries; ++i) Parts::multiply_add(totals[i][v], low, high, xs[i]);
    }
  }

  template <typename FactorCodes>
  YOCOBIT_INLINE void store(const FactorCodes* factors, int32_t* sums, ptrdiff_t stride) const {
#pragma GCC unroll 4
    for (int i = 0; i < kQueries; ++i) {
      constexpr int kOffset = type == FloatType::i4 ? 8 : Parts::kInt8Offset;
      const int32x4_t offset = vdupq_n_s32(kOffset * factors[i].sum);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const int32x4_t sum = Parts::joined(totals[i][v]);
        vst1q_s32(sums + i * stride + 4 * v, vsubq_s32(sum, offset));
      }
    }
  }
};

// Vectors whose sums fit into the registers.
template <int kQueries>
constexpr int kDotVectors = kQueries == 1   ? 8
                            : kQueries == 2 ? 4
                                            : 2;

template <typename Parts>
struct CodeDots {
  using QueryCodes = typename Parts::template Factors<kQueryCodes>;
  using WeightCodes = typename Parts::template Factors<kAttentionTile>;
  static constexpr int kStep = 2 * kBytesPerLane;  // rows have a multiple of 8 bytes

  template <FloatType type, int kQueries>
  static void score(const QueryCodes* queries, const uint8_t* keys, int64_t row_bytes,
                    TilePrefetcher& next, int32_t* sums) {
    constexpr int kVectors = kDotVectors<kQueries>, kPositions = 4 * kVectors;
    for (int j = 0; j < kAttentionTile; j += kPositions) {
      next.prefetch_part(j + kPositions, kAttentionTile);
      DotSums<Parts, type, kQueries, kVectors> products;
      for (int64_t byte = 0; byte < row_bytes; byte += kStep) {
        const uint8_t* from = keys + byte * kAttentionTile + j * kBytesPerLane;
        const uint8_t* second = from + kAttentionTile * kBytesPerLane;
        if constexpr (type == FloatType::i8) {
          products.multiply_add(queries, byte, from, second, 0);
        } else {
          products.multiply_add(queries, 2 * byte, from, second, 0);
          products.multiply_add(queries, 2 * byte + kStep, from, second, 1);
        }
      }
      products.store(queries, sums + j, kAttentionTile);
    }
  }

  template <FloatType type, int kQueries>
  static void add(const WeightCodes* weights, const uint8_t* values, int64_t row_bytes, int D,
                  TilePrefetcher& next, int32_t* sums) {
    constexpr int kMost = kDotVectors<kQueries>;
    int64_t byte = 0;
    // Bytes of int4 codes are columns of blocks of eight.
    if constexpr (type == FloatType::i8 && kMost > 2) {
      for (; byte + 4 * kMost <= row_bytes; byte += 4 * kMost) {
        next.prefetch_part(byte + 4 * kMost, row_bytes);
        add_columns<type, kQueries, kMost>(weights, values, row_bytes, D, byte, 0, sums + byte);
      }
    }
    for (; byte < row_bytes; byte += kStep) {
      next.prefetch_part(byte + kStep, row_bytes);
      if constexpr (type == FloatType::i8) {
        add_columns<type, kQueries, 2>(weights, values, row_bytes, D, byte, 0, sums + byte);
      } else {
        for (int half = 0; half < 2; ++half) {
          const int64_t d = 2 * byte + half * kStep;
          if (d == D) break;  // a block that is not whole
          add_columns<type, kQueries, 2>(weights, values, row_bytes, D, byte, half, sums + d);
        }
      }
    }
  }

 private:
  // 4 * kVectors columns.
  template <FloatType type, int kQueries, int kVectors>
  static void add_columns(const WeightCodes* weights, const uint8_t* values, int64_t row_bytes,
                          int D, int64_t byte, int half, int32_t* sums) {
    DotSums<Parts, type, kQueries, kVectors> products;
    for (int j = 0; j < kAttentionTile; j += 2 * kBytesPerLane) {
      const uint8_t* from = values + (j / kBytesPerLane * row_bytes + byte) * kBytesPerLane;
      products.multiply_add(weights, j, from, from + row_bytes * kBytesPerLane, half);
    }
    products.store(weights, sums, D);
  }
};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
