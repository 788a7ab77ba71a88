// Attention over int8 and int4 KV caches, in integers: a query is rounded to 15 bits, and so are
// the softmax weights of a tile, so that sums of products with codes are exact in any order.
//
// Dots is a type of the family, for a tile of kAttentionTile positions in the order of kv_tiles.h:
//
//   QueryCodes, WeightCodes  Codes of a query and of the weights of a tile, with what its products
//     need of them: split(n) makes that of the first n, a multiple of 8
//   score<type, kQueries>(queries, keys, row_bytes, next, sums)
//     sums[i][j] = query_i k_j
//   add<type, kQueries>(weights, values, row_bytes, D, next, sums)
//     sums[i][d] = sum over j of weights[i][j] v_j[d]
//
// int32 budgets: 1024 * 127 * 16383, 32 * 127 * 16383 and the offset 128 * 1024 * 16383 are below
// 2^31. Sums of codes in offset binary may wrap in vectors: subtracting the offset wraps them back.
// Positions that are not attended to are read, but their scores are not used and their weights are
// 0.
//
// Letters:  D head size
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/generic/attention_tiles-inl.h"
#include "kernels/generic/quantize-inl.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

static_assert(int64_t{128} * kMaxHeadDim * kInt16Max < int64_t{1} << 31);

// The running state of the online softmax, and the queries.
template <typename Dots, int kQueries>
struct CodeAttention {
  typename Dots::QueryCodes queries[kQueries];
  float scales[kQueries], largest[kQueries];
  F32x8 totals[kQueries];
};

// A tile that is being computed.
template <typename Dots, int kQueries>
struct CodeTile {
  int64_t slot, offset;  // of its first position, and of its codes
  int first, last;       // of its positions, those attended to
  TilePrefetcher next_keys, next_values;
  alignas(64) float weights[kQueries][kAttentionTile];  // scores, then weights
  float rescale[kLanes], scales[kQueries];
  typename Dots::WeightCodes codes[kQueries];

  CodeTile(const KeysValues& cache, int64_t position, int64_t begin, int64_t end)
      : CodeTile(cache, Tile(cache, position, end, kAhead)) {
    first = static_cast<int>(begin > position ? begin - position : 0);
    last = static_cast<int>(end - position < kAttentionTile ? end - position : kAttentionTile);
  }

 private:
  static constexpr int kAhead = 4;

  CodeTile(const KeysValues& cache, const Tile& tile)
      : slot(tile.slot),
        offset(tile.slot * cache.row_bytes),
        next_keys(cache.keys, cache, tile),
        next_values(cache.values, cache, tile) {}
};

template <typename Dots, FloatType type, int kQueries>
void score_tile_of_codes(const CodeAttention<Dots, kQueries>& state, const KeysValues& cache,
                         CodeTile<Dots, kQueries>& tile) {
  alignas(64) int32_t sums[kQueries * kAttentionTile];
  Dots::template score<type, kQueries>(state.queries,
                                       static_cast<const uint8_t*>(cache.keys) + tile.offset,
                                       cache.row_bytes, tile.next_keys, sums);
  for (int i = 0; i < kQueries; ++i) {
    const F32xN query_scale = splat_like(F32xN{}, state.scales[i]);
    for (int j = 0; j < kAttentionTile; j += kWideLanes) {
      const F32xN score = mul(wide_from_int32(sums + i * kAttentionTile + j), query_scale);
      store(tile.weights[i] + j, mul(score, load_wide(cache.key_scales + tile.slot + j)));
    }
  }
}

// Weights times the scales of their values, as codes.
template <typename Dots, int kQueries>
void round_weights(const KeysValues& cache, CodeTile<Dots, kQueries>& tile) {
  for (int i = 0; i < kQueries; ++i) {
    float* weights = tile.weights[i];
    for (int j = 0; j < kAttentionTile; j += kWideLanes) {
      const F32xN value_scales = load_wide(cache.value_scales + tile.slot + j);
      store(weights + j, mul(load_wide(weights + j), value_scales));
    }
    set_outside(weights, tile.first, tile.last, 0.0f);  // there may be anything in scales
    tile.codes[i].sum =
        quantize<F32xN>(weights, kAttentionTile, kInt16Max, tile.codes[i].codes, &tile.scales[i]);
    tile.codes[i].split(kAttentionTile);
  }
}

template <typename Dots, FloatType type, int kQueries>
void add_tile_of_codes(const KeysValues& cache, CodeTile<Dots, kQueries>& tile, float* outputs,
                       ptrdiff_t stride) {
  const int D = cache.head_dim;
  alignas(64) int32_t sums[kQueries * kMaxHeadDim];
  Dots::template add<type, kQueries>(tile.codes,
                                     static_cast<const uint8_t*>(cache.values) + tile.offset,
                                     cache.row_bytes, D, tile.next_values, sums);
  for (int i = 0; i < kQueries; ++i) {
    float* o = outputs + i * stride;
    int d = 0;
    for (; d + kWideLanes <= D; d += kWideLanes) {
      const F32xN before = mul(load_wide(o + d), splat_like(F32xN{}, tile.rescale[i]));
      const F32xN sum = wide_from_int32(sums + i * D + d);
      store(o + d, fma(sum, splat_like(F32xN{}, tile.scales[i]), before));
    }
    for (; d < D; d += kLanes) {
      const F32x8 before = mul(load(o + d), splat(tile.rescale[i]));
      store(o + d, fma(from_int32(sums + i * D + d), splat(tile.scales[i]), before));
    }
  }
}

// Each step for all tiles: the latency of the softmax of one is filled with another.
template <typename Dots, FloatType type, int kQueries, int kTiles>
void attend_to_tiles(CodeAttention<Dots, kQueries>& state, const KeysValues& cache,
                     CodeTile<Dots, kQueries> (&tiles)[kTiles], float* partials, ptrdiff_t stride) {
  for (auto& tile : tiles) score_tile_of_codes<Dots, type>(state, cache, tile);
  for (auto& tile : tiles) {
    update_softmax<kQueries>(tile.first, tile.last, tile.weights, state.largest, state.totals,
                             tile.rescale);
  }
  for (auto& tile : tiles) round_weights(cache, tile);
  for (auto& tile : tiles) add_tile_of_codes<Dots, type>(cache, tile, partials, stride);
}

template <typename Dots, FloatType type, int kQueries>
void attend_to_codes(const float* q, const KeysValues& cache, int64_t begin, int64_t end,
                     float scale, float* partials, ptrdiff_t stride) {
  const int D = cache.head_dim;
  CodeAttention<Dots, kQueries> state;
  for (int i = 0; i < kQueries; ++i) {
    typename Dots::QueryCodes& query = state.queries[i];
    query.sum = quantize(q + i * D, D, kInt16Max, query.codes, &state.scales[i]);
    for (int d = D; d < D + kCodePadding; ++d) query.codes[d] = 0;
    query.split(D + kCodePadding);
    state.scales[i] *= scale;
    state.largest[i] = kBelowAll;
    state.totals[i] = zero();
    for (int d = 0; d < D; d += kLanes) store(partials + i * stride + d, zero());
  }
  using OneTile = CodeTile<Dots, kQueries>;
  int64_t position = begin / kAttentionTile * kAttentionTile;
  for (; position + kAttentionTile < end; position += 2 * kAttentionTile) {
    OneTile tiles[] = {OneTile(cache, position, begin, end),
                       OneTile(cache, position + kAttentionTile, begin, end)};
    attend_to_tiles<Dots, type>(state, cache, tiles, partials, stride);
  }
  if (position < end) {
    OneTile tiles[] = {OneTile(cache, position, begin, end)};
    attend_to_tiles<Dots, type>(state, cache, tiles, partials, stride);
  }
  for (int i = 0; i < kQueries; ++i) {
    partials[i * stride + D] = state.largest[i];
    partials[i * stride + D + 1] = lane_sum(state.totals[i]);
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
