// The block index of the shared KV cache: which blocks a token attends to, selected once for all
// cross layers.
//
// A block is a tile of positions. Of each complete block the index keeps the largest and smallest
// value of every component of its keys, which bound the scores of any query in it (Quest,
// arXiv:2406.10774): q+ max + q- min, where q+ and q- are the positive and negative parts of q.
// These bounds are loose, so they only rank candidates, several times as many as are selected. The
// top-k candidates by the attention weights of the token's queries are selected.
//
// Letters:  H query heads   G KV heads   D head size
#pragma once

#include <cstdint>

#include "engine/kv_cache.h"
#include "model/model_config.h"

namespace yocobit {

// Blocks that every token attends to: the first, and the last, its own included.
constexpr int kFirstBlocks = 1;
constexpr int kLastBlocks = 2;
constexpr int kCandidatesPerBlock = 4;  // for each other block that is selected

inline int64_t n_blocks(int64_t position) { return position / kAttentionTile + 1; }

class BlockIndex {
 public:
  BlockIndex(const ModelConfig& config, int64_t max_tokens);

  // Add the blocks of one KV head that positions [begin, end) of the cache complete.
  void update(const Kernels& kernels, const KvCache& cache, int head, int64_t begin, int64_t end);

  // Write the config.cross_blocks() blocks, in order, that queries q [n_queries][D] of a KV head
  // attend to from a position with more blocks than that: the first, the last, and the top-k of the
  // others. Candidates are the blocks with the largest share of the softmax of the bounds, summed
  // over the queries; selected are those with the largest share of the queries' attention over the
  // first, the last and the candidates. One thread at a time for each head.
  void select(const Kernels& kernels, const KvCache& cache, int head, const float* q, int n_queries,
              int64_t position, int32_t* selected);

  int64_t size_bytes() const;

 private:
  const uint16_t* bounds(int head) const { return &bounds_[head * capacity_ * 2 * head_dim_]; }
  int n_top() const { return n_selected_ - kFirstBlocks - kLastBlocks; }
  void score_bounds(const Kernels& kernels, int head, const float* q, int n_queries, int64_t n);
  void score_attention(const Kernels& kernels, KeysValues cache, int head, const float* q,
                       int n_queries, int64_t position, const int32_t* blocks, int64_t n);

  int n_heads_, n_kv_heads_, head_dim_, n_selected_;
  int64_t capacity_, stride_;  // blocks; the same, rounded up to lanes
  int64_t attended_stride_;    // blocks attended to for the selection, rounded up to lanes
  Buffer<uint16_t> bounds_;    // [G][capacity][2][D], float16: largest, then smallest
  Buffer<float> parts_;        // [H][2][D], q+ and q-
  Buffer<float> scores_;       // [H][stride], by block
  Buffer<float> largest_;      // [H][attended_stride], largest score of each attended block
  Buffer<float> sums_;         // the same, sum(e^(score - largest))
  Buffer<float> partials_;     // [H][D + kPartialExtra]
  Buffer<int32_t> order_;      // [G][capacity]
};

}  // namespace yocobit
