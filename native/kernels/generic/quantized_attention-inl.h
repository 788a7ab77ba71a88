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
// Positions that a query does not attend to are read, but their scores are not used and their
// weights are 0. A query that attends to none of a tile is left as it is.
//
// Letters:  D head size
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/generic/attention_tiles-inl.h"
#include "kernels/generic/codes-inl.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

static_assert(int64_t{128} * kMaxHeadDim * kInt16Max < int64_t{1} << 31);

// The running state of the online softmax, and up to kQueries queries.
template <typename Dots, int kQueries>
struct CodeAttention {
  const AttentionQuery* queries;
  int n;
  typename Dots::QueryCodes codes[kQueries];
  float scales[kQueries], largest[kQueries];
  F32x8 totals[kQueries];
};

// A tile that is being computed.
template <typename Dots, int kQueries>
struct CodeTile {
  int64_t slot, offset;  // of its first position, and of its codes
  TilePrefetcher next_keys, next_values;
  Attended attended[kQueries];
  alignas(64) float weights[kQueries][kAttentionTile];  // scores, then weights
  float rescale[kRescales<kQueries>], scales[kQueries];
  typename Dots::WeightCodes codes[kQueries];

  CodeTile(const CodeAttention<Dots, kQueries>& state, const KeysValues& cache, int64_t position,
           int64_t end)
      : CodeTile(cache, Tile(cache, position, end, kAhead)) {
    for (int i = 0; i < state.n; ++i) attended[i] = Attended(state.queries[i], position);
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
  Dots::template score<type, kQueries>(state.codes,
                                       static_cast<const uint8_t*>(cache.keys) + tile.offset,
                                       cache.row_bytes, tile.next_keys, sums);
  for (int i = 0; i < kQueries; ++i) {
    if (!tile.attended[i].any()) continue;
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
    if (!tile.attended[i].any()) {
      tile.codes[i] = {};
      continue;
    }
    float* weights = tile.weights[i];
    for (int j = 0; j < kAttentionTile; j += kWideLanes) {
      const F32xN value_scales = load_wide(cache.value_scales + tile.slot + j);
      store(weights + j, mul(load_wide(weights + j), value_scales));
    }
    tile.attended[i].set_outside(weights, 0.0f);  // scales there may have any value
    tile.codes[i].sum =
        quantize<F32xN>(weights, kAttentionTile, kInt16Max, tile.codes[i].codes, &tile.scales[i]);
    tile.codes[i].split(kAttentionTile);
  }
}

template <typename Dots, FloatType type, int kQueries>
void add_tile_of_codes(const CodeAttention<Dots, kQueries>& state, const KeysValues& cache,
                       CodeTile<Dots, kQueries>& tile) {
  const int D = cache.head_dim;
  alignas(64) int32_t sums[kQueries * kMaxHeadDim];
  Dots::template add<type, kQueries>(tile.codes,
                                     static_cast<const uint8_t*>(cache.values) + tile.offset,
                                     cache.row_bytes, D, tile.next_values, sums);
  for (int i = 0; i < kQueries; ++i) {
    if (!tile.attended[i].any()) continue;
    float* o = state.queries[i].partial;
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
                     CodeTile<Dots, kQueries> (&tiles)[kTiles]) {
  for (auto& tile : tiles) score_tile_of_codes<Dots, type>(state, cache, tile);
  for (auto& tile : tiles) {
    update_softmax<kQueries, false>(tile.attended, tile.weights, state.largest, state.totals,
                                    tile.rescale);
  }
  for (auto& tile : tiles) round_weights(cache, tile);
  for (auto& tile : tiles) add_tile_of_codes<Dots, type>(state, cache, tile);
}

// Up to kQueries queries.
template <typename Dots, FloatType type, int kQueries>
void attend_to_codes(const AttentionQuery* queries, int n, const KeysValues& cache, float scale) {
  const int D = cache.head_dim;
  CodeAttention<Dots, kQueries> state;
  state.queries = queries;
  state.n = n;
  int64_t begin = queries->begin, end = queries->end;
  for (int i = 0; i < n; ++i) {
    typename Dots::QueryCodes& query = state.codes[i];
    query.sum = quantize(queries[i].q, D, kInt16Max, query.codes, &state.scales[i]);
    for (int d = D; d < D + kCodePadding; ++d) query.codes[d] = 0;
    query.split(D + kCodePadding);
    state.scales[i] *= scale;
    state.largest[i] = kBelowAll;
    state.totals[i] = zero();
    for (int d = 0; d < D; d += kLanes) store(queries[i].partial + d, zero());
    begin = queries[i].begin < begin ? queries[i].begin : begin;
    end = queries[i].end > end ? queries[i].end : end;
  }
  for (int i = n; i < kQueries; ++i) state.codes[i] = {};
  using OneTile = CodeTile<Dots, kQueries>;
  int64_t position = begin / kAttentionTile * kAttentionTile;
  for (; position + kAttentionTile < end; position += 2 * kAttentionTile) {
    OneTile tiles[] = {OneTile(state, cache, position, end),
                       OneTile(state, cache, position + kAttentionTile, end)};
    attend_to_tiles<Dots, type>(state, cache, tiles);
  }
  if (position < end) {
    OneTile tiles[] = {OneTile(state, cache, position, end)};
    attend_to_tiles<Dots, type>(state, cache, tiles);
  }
  for (int i = 0; i < n; ++i) {
    queries[i].partial[D] = state.largest[i];
    queries[i].partial[D + 1] = lane_sum(state.totals[i]);
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
