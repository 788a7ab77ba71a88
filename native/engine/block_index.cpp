#include "engine/block_index.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "engine/attention.h"

namespace yocobit {
namespace {

constexpr float kLargestHalf = 65504.0f;
constexpr float kLowest = std::numeric_limits<float>::lowest();

// The candidates are scattered, so hardware prefetchers do not find them.
void prefetch_keys(const KeysValues& cache, int64_t block) {
  const int64_t size = kAttentionTile * cache.row_bytes;
  const char* keys = static_cast<const char*>(cache.keys) + block * size;
  for (int64_t byte = 0; byte < size; byte += kCacheLine) __builtin_prefetch(keys + byte);
}

// row[i] becomes e^(rate (row[i] - largest of the n)), and 0 up to the next whole lanes.
void exponentials_below_largest(const Kernels& kernels, float* row, int64_t n, float rate) {
  const int64_t padded = round_up(n, kLanes);
  std::fill(row + n, row + padded, kLowest);
  const float largest = *std::max_element(row, row + n);
  kernels.exponentials(row, static_cast<int>(padded), largest, rate, row);
}

}  // namespace

BlockIndex::BlockIndex(const ModelConfig& config, int64_t max_tokens)
    : n_heads_(config.n_heads),
      n_kv_heads_(config.n_kv_heads),
      head_dim_(config.heads().head_dim),
      n_selected_(config.cross_blocks()),
      capacity_(n_blocks(max_tokens - 1)),
      stride_(round_up(capacity_, kLanes)),
      attended_stride_(round_up(
          std::min<int64_t>(capacity_,
                            int64_t{kCandidatesPerBlock} * n_top() + kFirstBlocks + kLastBlocks),
          kLanes)),
      bounds_(make_buffer<uint16_t>(n_kv_heads_ * capacity_ * 2 * head_dim_)),
      parts_(make_buffer<float>(size_t{2} * n_heads_ * head_dim_)),
      scores_(make_buffer<float>(n_heads_ * stride_)),
      largest_(make_buffer<float>(n_heads_ * attended_stride_)),
      sums_(make_buffer<float>(n_heads_ * attended_stride_)),
      partials_(make_buffer<float>(n_heads_ * (head_dim_ + kPartialExtra))),
      order_(make_buffer<int32_t>(n_kv_heads_ * capacity_)) {}

int64_t BlockIndex::size_bytes() const {
  const int64_t bounds = n_kv_heads_ * capacity_ * int64_t{4} * head_dim_;
  const int64_t of_a_query = 3 * head_dim_ + kPartialExtra + stride_ + 2 * attended_stride_;
  return bounds + 4 * (n_heads_ * of_a_query + n_kv_heads_ * capacity_);
}

void BlockIndex::update(const Kernels& kernels, const KvCache& cache, int head, int64_t begin,
                        int64_t end) {
  const int D = head_dim_;
  float key[kMaxHeadDim], largest[kMaxHeadDim], smallest[kMaxHeadDim];
  for (int64_t block = begin / kAttentionTile; (block + 1) * kAttentionTile <= end; ++block) {
    std::fill_n(largest, D, -kLargestHalf);
    std::fill_n(smallest, D, kLargestHalf);
    for (int64_t i = 0; i < kAttentionTile; ++i) {
      cache.load_key(kernels, head, block * kAttentionTile + i, key);
      for (int d = 0; d < D; ++d) {
        largest[d] = std::max(largest[d], std::min(key[d], kLargestHalf));
        smallest[d] = std::min(smallest[d], std::max(key[d], -kLargestHalf));
      }
    }
    uint16_t* bound = &bounds_[(head * capacity_ + block) * 2 * D];
    kernels.store(largest, D, FloatType::f16, bound, nullptr);
    kernels.store(smallest, D, FloatType::f16, bound + D, nullptr);
  }
}

// Score the first n blocks by their share of the softmax of the bounds, summed over the queries
// into the scores of the first.
void BlockIndex::score_bounds(const Kernels& kernels, int head, const float* q, int n_queries,
                              int64_t n) {
  const int D = head_dim_;
  float* parts = &parts_[size_t{2} * head * n_queries * D];
  for (int i = 0; i < n_queries; ++i) {
    for (int d = 0; d < D; ++d) {
      parts[2 * i * D + d] = std::max(q[i * D + d], 0.0f);
      parts[(2 * i + 1) * D + d] = std::min(q[i * D + d], 0.0f);
    }
  }
  const DenseMatrix matrix = {.values = bounds(head),
                              .scales = nullptr,
                              .type = FloatType::f16,
                              .m = static_cast<int>(n),
                              .k = 2 * D};
  float* scores = &scores_[head * n_queries * stride_];
  kernels.dense_gemm(matrix, parts, n_queries, 0, matrix.m, scores, stride_);
  const float scale = 1.0f / std::sqrt(static_cast<float>(D));
  for (int i = 0; i < n_queries; ++i) {
    float* row = scores + i * stride_;
    for (int64_t b = 0; b < n; ++b) row[b] = row[b] > kLowest ? row[b] : kLowest;  // NaN
    exponentials_below_largest(kernels, row, n, scale);
    const float share = 1.0f / std::accumulate(row, row + n, 0.0f);
    for (int64_t b = 0; b < n; ++b) {
      scores[b] = i == 0 ? share * row[b] : scores[b] + share * row[b];
    }
  }
}

// Score n blocks, in order, by their share of the queries' attention over them, summed over the
// queries into the scores of the first.
void BlockIndex::score_attention(const Kernels& kernels, KeysValues cache, int head, const float* q,
                                 int n_queries, int64_t position, const int32_t* blocks,
                                 int64_t n) {
  const int64_t stride = head_dim_ + kPartialExtra;
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim_));
  float* scores = &scores_[head * n_queries * stride_];
  float* largest = &largest_[head * n_queries * attended_stride_];
  float* sums = &sums_[head * n_queries * attended_stride_];
  float* partials = &partials_[head * n_queries * stride];
  // The values are not needed; attend reads the keys in their place, which hit the CPU's caches.
  cache.values = cache.keys;
  cache.value_scales = cache.key_scales;
  for (int64_t i = 0; i < n; ++i) {
    scores[blocks[i]] = 0.0f;
    cache.tiles = blocks + i;
    if (i + 1 < n) prefetch_keys(cache, blocks[i + 1]);
    const int64_t end = position + 1 - int64_t{blocks[i]} * kAttentionTile;
    for (int first = 0; first < n_queries; first += kQueriesTogether) {
      AttentionQuery queries[kQueriesTogether];
      const int n_together = std::min(n_queries - first, kQueriesTogether);
      for (int query = 0; query < n_together; ++query) {
        queries[query] = {.q = q + int64_t{first + query} * head_dim_,
                          .begin = 0,
                          .end = std::min<int64_t>(end, kAttentionTile),
                          .partial = partials + (first + query) * stride};
      }
      kernels.attend(queries, n_together, cache, scale);
    }
    for (int query = 0; query < n_queries; ++query) {
      const float* found = &partials[query * stride + head_dim_];
      largest[query * attended_stride_ + i] = found[0] > kLowest ? found[0] : kLowest;  // NaN
      sums[query * attended_stride_ + i] = found[1];
    }
  }
  for (int query = 0; query < n_queries; ++query) {
    float* row = largest + query * attended_stride_;
    exponentials_below_largest(kernels, row, n, 1.0f);
    float total = 0.0f;
    for (int64_t i = 0; i < n; ++i) {
      const float weight = row[i] * sums[query * attended_stride_ + i];
      row[i] = weight > 0.0f ? weight : 0.0f;  // NaN
      total += row[i];
    }
    const float share = total > 0.0f ? 1.0f / total : 0.0f;
    for (int64_t i = 0; i < n; ++i) scores[blocks[i]] += share * row[i];
  }
}

void BlockIndex::select(const Kernels& kernels, const KvCache& cache, int head, const float* q,
                        int n_queries, int64_t position, int32_t* selected) {
  const int64_t end = n_blocks(position), last = end - kLastBlocks;
  score_bounds(kernels, head, q, n_queries, end - 1);
  const float* scores = &scores_[head * n_queries * stride_];
  const auto ranks_above = [&](int32_t a, int32_t b) {
    return scores[a] != scores[b] ? scores[a] > scores[b] : a < b;
  };
  int32_t* order = &order_[head * capacity_];
  std::iota(order, order + end, 0);
  int32_t* candidates = order + kFirstBlocks;
  int32_t* last_candidate =
      candidates + std::min<int64_t>(last - kFirstBlocks, int64_t{kCandidatesPerBlock} * n_top());
  std::nth_element(candidates, last_candidate, order + last, ranks_above);
  std::sort(candidates, last_candidate);
  std::iota(last_candidate, last_candidate + kLastBlocks, static_cast<int32_t>(last));
  score_attention(kernels, cache.view(head), head, q, n_queries, position, order,
                  last_candidate + kLastBlocks - order);
  std::nth_element(candidates, candidates + n_top(), last_candidate, ranks_above);
  std::sort(candidates, candidates + n_top());
  std::copy_n(order, kFirstBlocks + n_top(), selected);
  std::iota(selected + kFirstBlocks + n_top(), selected + n_selected_, static_cast<int32_t>(last));
}

}  // namespace yocobit
