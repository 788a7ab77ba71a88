// Which blocks of the shared keys and values a token attends to, chosen once for all cross layers.
//
// A block is a tile of positions. Of each that is whole the index keeps the largest and the
// smallest value of every component of its keys, and so knows a bound of any query's scores in it
// (Quest, arXiv:2406.10774): q+ max + q- min, where q+ and q- are the positive and negative parts
// of q. The bounds of a block of different keys are loose: they only say which blocks are tried,
// some times as many as can be attended to. Of those the ones that the token's attention falls on
// are chosen.
//
// Letters:  H heads   G K/V heads   D head size
#pragma once

#include <cstdint>

#include "engine/kv_cache.h"
#include "model/packed_model.h"

namespace yocobit {

// What is attended to beside the best blocks: the first and the last ones, the token's own
// included.
constexpr int kFirstBlocks = 1;
constexpr int kLastBlocks = 2;
constexpr int kTried = 4;  // for each block that is chosen

inline int64_t n_blocks(int64_t position) { return position / kAttentionTile + 1; }

class BlockIndex {
 public:
  BlockIndex(const ModelConfig& config, int64_t max_tokens);

  // Take in the blocks that positions [begin, end) of the cache make whole, of one K/V head.
  void update(const Kernels& kernels, const KeyValueCache& cache, int head, int64_t begin,
              int64_t end);

  // Write the config.cross_blocks() blocks, in order, that queries q [n_queries][D] of a K/V head
  // of the cache attend to from a position that sees more than those: the first, the last, and of
  // the others the best. Tried are kTried times as many, those with the largest share of the
  // softmax of the bounds, summed over the queries; chosen those with the largest share of the
  // queries' attention over the first, the last and the tried ones. One thread at a time for each
  // head.
  void choose(const Kernels& kernels, const KeyValueCache& cache, int head, const float* q,
              int n_queries, int64_t position, int32_t* chosen);

  int64_t bytes() const;

 private:
  const uint16_t* bounds(int head) const { return &bounds_[head * capacity_ * 2 * head_dim_]; }
  int n_best() const { return n_chosen_ - kFirstBlocks - kLastBlocks; }
  void score(const Kernels& kernels, int head, const float* q, int n_queries, int64_t n);
  void weigh(const Kernels& kernels, KeysValues cache, int head, const float* q, int n_queries,
             int64_t position, const int32_t* blocks, int64_t n);

  int n_heads_, n_kv_heads_, head_dim_, n_chosen_;
  int64_t capacity_, stride_;  // blocks; the same, rounded up to lanes
  int64_t weighed_stride_;     // blocks that are attended to before the choice, likewise
  Buffer<uint16_t> bounds_;    // [G][capacity][2][D], float16: largest, then smallest
  Buffer<float> parts_;        // [H][2][D], q+ and q-
  Buffer<float> scores_;       // [H][stride], by block
  Buffer<float> largest_;      // [H][weighed_stride], scores, by block in the order of positions
  Buffer<float> sums_;         // the same, sum(e^(score - largest))
  Buffer<float> partials_;     // [H][D + kPartialExtra]
  Buffer<int32_t> order_;      // [G][capacity]
};

// The same without an index: the first block, and as many of the last as there may be.
void choose_window(int n_chosen, int64_t position, int32_t* chosen);

}  // namespace yocobit
