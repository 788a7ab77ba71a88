// Attention over float32 and float16 KV caches.
//
// Letters:  D head size
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/generic/attention_tiles-inl.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// From one query to the next of those that are copied: no power of two, which L1 would evict.
constexpr int kQueryStride = kMaxHeadDim + 16;

// Accumulators for each of kQueries queries: half of the registers, the rest is for operands.
template <int kQueries>
constexpr int kBlock = kRegisters / 2 / (kQueries > 2 ? 4 : kQueries);

// scores[i][j] = q_i k_j, for kPositions positions from j on; keys are those of the tile.
template <FloatType type, int kQueries, int kPositions>
YOCOBIT_INLINE void score_positions(const float* q, const uint8_t* keys, int64_t row_bytes, int D,
                                    int j, float (*scores)[kAttentionTile]) {
  keys += j * row_bytes;
  F32x8 sums[kQueries * kPositions];
  for (F32x8& sum : sums) sum = zero();
  for (int d = 0; d < D; d += 2 * kLanes) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      if (half == 1 && d + kLanes == D) break;
      F32x8 key[kPositions];
      for (int p = 0; p < kPositions; ++p)
        key[p] = load_as<type>(keys + p * row_bytes, d + half * kLanes);
      for (int i = 0; i < kQueries; ++i) {
        const F32x8 query = in_register(load(q + i * kQueryStride + d + half * kLanes));
        for (int p = 0; p < kPositions; ++p) {
          sums[i * kPositions + p] = fma(query, key[p], sums[i * kPositions + p]);
        }
      }
    }
  }
  lane_sums<kQueries * kPositions, kPositions>(sums, scores[0] + j, kAttentionTile);
}

template <FloatType type, int kQueries>
void score_tile(const float* q, const KeysValues& cache, const Tile& tile, int first, int last,
                float (*scores)[kAttentionTile]) {
  constexpr int kPositions = kBlock<kQueries>;
  const int64_t row_bytes = cache.row_bytes;
  const uint8_t* keys = static_cast<const uint8_t*>(cache.keys) + tile.slot * row_bytes;
  TilePrefetcher next(cache.keys, cache, tile);
  int j = first;
  for (; j + kPositions <= last; j += kPositions) {
    next.prefetch_part(j + kPositions, kAttentionTile);
    score_positions<type, kQueries, kPositions>(q, keys, row_bytes, cache.head_dim, j, scores);
  }
  for (; j < last; ++j) {
    score_positions<type, kQueries, 1>(q, keys, row_bytes, cache.head_dim, j, scores);
  }
}

// outputs_i = rescale_i * outputs_i + sum over j of weights[i][j] v_j, for kVectors vectors from d.
template <FloatType type, int kQueries, int kVectors>
YOCOBIT_INLINE void add_values(const float (*weights)[kAttentionTile], const float* rescale,
                               const uint8_t* values, int64_t row_bytes, int first, int last, int d,
                               float* const* outputs) {
  F32x8 sums[kQueries][kVectors];
  for (int i = 0; i < kQueries; ++i) {
    for (int e = 0; e < kVectors; ++e) {
      sums[i][e] = mul(load(outputs[i] + d + e * kLanes), splat(rescale[i]));
    }
  }
  for (int j = first; j < last; ++j) {
    F32x8 value[kVectors];
    for (int e = 0; e < kVectors; ++e) {
      value[e] = load_as<type>(values + j * row_bytes, d + e * kLanes);
    }
    for (int i = 0; i < kQueries; ++i) {
      const F32x8 weight = splat(weights[i][j]);
      for (int e = 0; e < kVectors; ++e) sums[i][e] = fma(weight, value[e], sums[i][e]);
    }
  }
  for (int i = 0; i < kQueries; ++i) {
    for (int e = 0; e < kVectors; ++e) store(outputs[i] + d + e * kLanes, sums[i][e]);
  }
}

// The same for the whole row: in blocks of kVectors, the remainder in halves of them.
template <FloatType type, int kQueries, int kVectors>
YOCOBIT_INLINE void add_tile(const float (*weights)[kAttentionTile], const float* rescale,
                             const KeysValues& cache, const uint8_t* values, TilePrefetcher& next,
                             int first, int last, int d, float* const* outputs) {
  for (; d + kVectors * kLanes <= cache.head_dim; d += kVectors * kLanes) {
    next.prefetch_part(d + kVectors * kLanes, cache.head_dim);
    add_values<type, kQueries, kVectors>(weights, rescale, values, cache.row_bytes, first, last, d,
                                         outputs);
  }
  if constexpr (kVectors > 1) {
    add_tile<type, kQueries, kVectors / 2>(weights, rescale, cache, values, next, first, last, d,
                                           outputs);
  }
}

template <FloatType type, int kQueries>
void add_tile(const float (*weights)[kAttentionTile], const float* rescale, const KeysValues& cache,
              const Tile& tile, int first, int last, float* const* outputs) {
  const uint8_t* values = static_cast<const uint8_t*>(cache.values) + tile.slot * cache.row_bytes;
  TilePrefetcher next(cache.values, cache, tile);
  add_tile<type, kQueries, kBlock<kQueries>>(weights, rescale, cache, values, next, first, last, 0,
                                             outputs);
}

// Queries with the same positions.
template <FloatType type, int kQueries>
void attend_as(const AttentionQuery* queries, const KeysValues& cache, float scale) {
  const int D = cache.head_dim;
  float q[kQueries * kQueryStride], *outputs[kQueries], largest[kQueries];
  F32x8 totals[kQueries];
  for (int i = 0; i < kQueries; ++i) {
    outputs[i] = queries[i].partial;
    largest[i] = kBelowAll;
    totals[i] = zero();
    for (int d = 0; d < D; d += kLanes) {
      store(q + i * kQueryStride + d, load(queries[i].q + d));
      store(outputs[i] + d, zero());
    }
  }
  const int64_t end = queries->end;
  int64_t position = queries->begin / kAttentionTile * kAttentionTile;
  for (; position < end; position += kAttentionTile) {
    const Attended attended(*queries, position);
    const auto [first, last] = attended;
    const Tile tile(cache, position, end);
    float weights[kQueries][kAttentionTile] = {}, rescale[kRescales<kQueries>];
    score_tile<type, kQueries>(q, cache, tile, first, last, weights);
    for (int i = 0; i < kQueries; ++i) {
      for (int j = 0; j < kAttentionTile; j += kLanes) {
        store(weights[i] + j, mul(load(weights[i] + j), splat(scale)));
      }
    }
    update_softmax<kQueries, true>(&attended, weights, largest, totals, rescale);
    add_tile<type, kQueries>(weights, rescale, cache, tile, first, last, outputs);
  }
  for (int i = 0; i < kQueries; ++i) {
    outputs[i][D] = largest[i];
    outputs[i][D + 1] = lane_sum(totals[i]);
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
