// Shared by attention over float and over quantised KV caches: tiles of positions, their prefetch
// and the online softmax.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/generic/floats-inl.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// Below every score of attention.
constexpr float kBelowAll = -3.0e38f;

// Zeros after the codes of a row, for a block of int4 codes that is not whole.
constexpr int kCodePadding = 8, kQueryCodes = kMaxHeadDim + kCodePadding;

// Codes of a query, or of the weights of a tile, and their sum.
template <int kSize>
struct Codes {
  alignas(64) int16_t codes[kSize];
  int32_t sum;
};

// The same where products take them as they are.
template <int kSize>
struct WholeCodes : Codes<kSize> {
  void split(int) {}
};

// Of byte `byte` of a row of int4 codes, the first code of its low half; that of its high half is 8
// codes on.
inline int first_code(int64_t byte) { return static_cast<int>(byte / 8 * 16 + byte % 8); }

// Where a tile of positions is in the cache, and where the one that comes `ahead` after it.
struct Tile {
  int64_t slot, next;  // of their first positions; next is -1 after the last tile

  Tile(const KeysValues& cache, int64_t position, int64_t end, int ahead = 1) {
    const int64_t after = position + ahead * kAttentionTile;
    if (cache.tiles) {
      slot = int64_t{cache.tiles[position / kAttentionTile]} * kAttentionTile;
      next = after < end ? int64_t{cache.tiles[after / kAttentionTile]} * kAttentionTile : -1;
    } else {
      slot = position % cache.capacity;
      next = slot + (ahead + 1) * kAttentionTile > cache.capacity ? -1 : slot + after - position;
    }
  }
};

// Prefetches the rows of the tile `ahead` after this one, piece by piece while this one is
// computed, which takes longer than the latency of memory. The CPU's own prefetchers do not follow
// tiles.
class TilePrefetcher {
 public:
  TilePrefetcher(const void* rows, const KeysValues& cache, const Tile& tile)
      : rows_(static_cast<const uint8_t*>(rows) +
              (tile.next < 0 ? 0 : tile.next) * cache.row_bytes),
        size_(tile.next < 0 ? 0 : kAttentionTile * cache.row_bytes) {}

  // The two cache lines at a byte; beyond the tile, or without one, this has no effect.
  void prefetch_lines(int64_t byte) const {
    prefetch(rows_ + byte);
    prefetch(rows_ + byte + kCacheLine);
  }

  // Up to part / parts of them.
  void prefetch_part(int64_t part, int64_t parts) {
    for (; done_ * parts < size_ * part; done_ += kCacheLine) prefetch(rows_ + done_);
  }

 private:
  const uint8_t* rows_;
  int64_t size_, done_ = 0;
};

// The positions [first, last) of a tile that a query attends to, of which there may be none.
struct Attended {
  int first = 0, last = 0;

  Attended() = default;
  Attended(const AttentionQuery& query, int64_t position)
      : first(clamped(query.begin - position)), last(clamped(query.end - position)) {}

  bool any() const { return first < last; }

  // Set the other positions; most tiles have none.
  void set_outside(float* row, float value) const {
    if (first == 0 && last == kAttentionTile) return;
    for (int j = 0; j < first; ++j) row[j] = value;
    for (int j = last; j < kAttentionTile; ++j) row[j] = value;
  }

 private:
  static int clamped(int64_t j) {
    return static_cast<int>(j < 0 ? 0 : j < kAttentionTile ? j : kAttentionTile);
  }
};

// Sizes of arrays of which each query has an element.
template <int kQueries>
constexpr int kRescales = (kQueries + kLanes - 1) / kLanes * kLanes;

// Online-softmax update: the scores of a tile become weights, and the sums so far are to be
// multiplied by rescale[kRescales]. With kIsSame all queries attend to the positions of the first;
// otherwise those that attend to none are left as they are.
template <int kQueries, bool kIsSame>
YOCOBIT_INLINE void update_softmax(const Attended* attended, float (*scores)[kAttentionTile],
                                   float* largest, F32x8* totals, float* rescale) {
  float changes[kRescales<kQueries>] = {};
  for (int i = 0; i < kQueries; ++i) {
    const Attended& own = attended[kIsSame ? 0 : i];
    if (!kIsSame && !own.any()) continue;
    own.set_outside(scores[i], kBelowAll);
    F32xN highest = splat_like(F32xN{}, largest[i]);
    for (int j = 0; j < kAttentionTile; j += kWideLanes) {
      highest = max(load_wide(scores[i] + j), highest);
    }
    changes[i] = largest[i];
    largest[i] = lane_max(highest);
    changes[i] -= largest[i];
  }
  for (int i = 0; i < kQueries; i += kLanes) store(rescale + i, exponential(load(changes + i)));
  for (int i = 0; i < kQueries; ++i) {
    const Attended& own = attended[kIsSame ? 0 : i];
    if (!kIsSame && !own.any()) continue;
    const F32xN shift = splat_like(F32xN{}, largest[i]);
    for (int j = 0; j < kAttentionTile; j += kWideLanes) {
      store(scores[i] + j, exponential(sub(load_wide(scores[i] + j), shift)));
    }
    own.set_outside(scores[i], 0.0f);
    totals[i] = mul(totals[i], splat(rescale[i]));
    for (int j = 0; j < kAttentionTile; j += kLanes) {
      totals[i] = add(load(scores[i] + j), totals[i]);
    }
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
