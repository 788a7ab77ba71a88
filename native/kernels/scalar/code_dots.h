// Products of a tile of int8 or int4 codes with queries and with softmax weights; the contract is
// in generic/quantized_attention-inl.h.
#pragma once

#include <cstdint>

#include "kernels/generic/attention_tiles-inl.h"
#include "kernels/kv_tiles.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// Code d of a row of a tile.
template <FloatType type, typename Order>
int32_t code_at(const Order& order, const uint8_t* tile, int position, int d, int64_t row_bytes) {
  if (type == FloatType::i8) return tile[order(position, d, row_bytes)] - 128;
  const uint8_t byte = tile[order(position, d / 16 * 8 + d % 8, row_bytes)];
  return (byte >> (d % 16 / 8 * 4) & 15) - 8;
}

struct CodeDots {
  using QueryCodes = WholeCodes<kQueryCodes>;
  using WeightCodes = WholeCodes<kAttentionTile>;

  template <FloatType type, int kQueries>
  static void score(const QueryCodes* queries, const uint8_t* keys, int64_t row_bytes,
                    TilePrefetcher&, int32_t* sums) {
    const int D = static_cast<int>(type == FloatType::i8 ? row_bytes : 2 * row_bytes);
    for (int i = 0; i < kQueries; ++i) {
      for (int j = 0; j < kAttentionTile; ++j) {
        int32_t sum = 0;
        for (int d = 0; d < D; ++d) {
          sum += queries[i].codes[d] * code_at<type>(key_byte, keys, j, d, row_bytes);
        }
        sums[i * kAttentionTile + j] = sum;
      }
    }
  }

  template <FloatType type, int kQueries>
  static void add(const WeightCodes* weights, const uint8_t* values, int64_t row_bytes, int D,
                  TilePrefetcher&, int32_t* sums) {
    for (int i = 0; i < kQueries; ++i) {
      for (int d = 0; d < D; ++d) {
        int32_t sum = 0;
        for (int j = 0; j < kAttentionTile; ++j) {
          sum += weights[i].codes[j] * code_at<type>(value_byte, values, j, d, row_bytes);
        }
        sums[i * D + d] = sum;
      }
    }
  }
};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
