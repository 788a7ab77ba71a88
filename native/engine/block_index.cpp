#include "engine/block_index.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace yocobit {
namespace {

constexpr float kLargestHalf = 65504.0f;
constexpr float kLowest = std::numeric_limits<float>::lowest();

// They lie anywhere, so that the CPU does not foresee them.
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
      head_dim_(config.head_dim()),
      n_chosen_(config.cross_blocks()),
      capacity_(n_blocks(max_tokens - 1)),
      stride_(round_up(capacity_, kLanes)),
      weighed_stride_(round_up(
          std::min<int64_t>(capacity_, int64_t{kTried} * n_best() + kFirstBlocks + kLastBlocks),
          kLanes)),
      bounds_(make_buffer<uint16_t>(n_kv_heads_ * capacity_ * 2 * head_dim_)),
      parts_(make_buffer<float>(size_t{2} * n_heads_ * head_dim_)),
      scores_(make_buffer<float>(n_heads_ * stride_)),
      largest_(make_buffer<float>(n_heads_ * weighed_stride_)),
      sums_(make_buffer<float>(n_heads_ * weighed_stride_)),
      partials_(make_buffer<float>(n_heads_ * (head_dim_ + kPartialExtra))),
      order_(make_buffer<int32_t>(n_kv_heads_ * capacity_)) {}

int64_t BlockIndex::bytes() const {
  const int64_t bounds = n_kv_heads_ * capacity_ * int64_t{4} * head_dim_;
  const int64_t of_a_query = 3 * head_dim_ + kPartialExtra + stride_ + 2 * weighed_stride_;
  return bounds + 4 * (n_heads_ * of_a_query + n_kv_heads_ * capacity_);
}

void BlockIndex::update(const Kernels& kernels, const KeyValueCache& cache, int head, int64_t begin,
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

// Scores of the first n blocks, as shares of their softmax, summed into those of the first query.
void BlockIndex::score(const Kernels& kernels, int head, const float* q, int n_queries, int64_t n) {
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
  kernels.dense_matmul(matrix, parts, n_queries, 0, matrix.m, scores, stride_);
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

// Shares of the queries' attention over n blocks, in order, summed into the scores of those in the
// row of the first query.
void BlockIndex::weigh(const Kernels& kernels, KeysValues cache, int head, const float* q,
                       int n_queries, int64_t position, const int32_t* blocks, int64_t n) {
  const int64_t stride = head_dim_ + kPartialExtra;
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim_));
  float* scores = &scores_[head * n_queries * stride_];
  float* largest = &largest_[head * n_queries * weighed_stride_];
  float* sums = &sums_[head * n_queries * weighed_stride_];
  float* partials = &partials_[head * n_queries * stride];
  // No values are needed: in their place the keys are read, which are near by then.
  cache.values = cache.keys;
  cache.value_scales = cache.key_scales;
  for (int64_t i = 0; i < n; ++i) {
    scores[blocks[i]] = 0.0f;
    cache.tiles = blocks + i;
    if (i + 1 < n) prefetch_keys(cache, blocks[i + 1]);
    const int64_t end = position + 1 - int64_t{blocks[i]} * kAttentionTile;
    kernels.attend(q, n_queries, cache, 0, std::min<int64_t>(end, kAttentionTile), scale, partials,
                   stride);
    for (int query = 0; query < n_queries; ++query) {
      const float* found = &partials[query * stride + head_dim_];
      largest[query * weighed_stride_ + i] = found[0] > kLowest ? found[0] : kLowest;  // NaN
      sums[query * weighed_stride_ + i] = found[1];
    }
  }
  for (int query = 0; query < n_queries; ++query) {
    float* row = largest + query * weighed_stride_;
    exponentials_below_largest(kernels, row, n, 1.0f);
    float total = 0.0f;
    for (int64_t i = 0; i < n; ++i) {
      const float weight = row[i] * sums[query * weighed_stride_ + i];
      row[i] = weight > 0.0f ? weight : 0.0f;  // NaN
      total += row[i];
    }
    const float share = total > 0.0f ? 1.0f / total : 0.0f;
    for (int64_t i = 0; i < n; ++i) scores[blocks[i]] += share * row[i];
  }
}

void BlockIndex::choose(const Kernels& kernels, const KeyValueCache& cache, int head,
                        const float* q, int n_queries, int64_t position, int32_t* chosen) {
  const int64_t end = n_blocks(position), last = end - kLastBlocks;
  score(kernels, head, q, n_queries, end - 1);
  const float* scores = &scores_[head * n_queries * stride_];
  const auto is_better = [&](int32_t a, int32_t b) {
    return scores[a] != scores[b] ? scores[a] > scores[b] : a < b;
  };
  int32_t* order = &order_[head * capacity_];
  std::iota(order, order + end, 0);
  int32_t* tried = order + kFirstBlocks;
  int32_t* last_tried = tried + std::min<int64_t>(last - kFirstBlocks, int64_t{kTried} * n_best());
  std::nth_element(tried, last_tried, order + last, is_better);
  std::sort(tried, last_tried);
  std::iota(last_tried, last_tried + kLastBlocks, static_cast<int32_t>(last));
  weigh(kernels, cache.view(head), head, q, n_queries, position, order,
        last_tried + kLastBlocks - order);
  std::nth_element(tried, tried + n_best(), last_tried, is_better);
  std::sort(tried, tried + n_best());
  std::copy_n(order, kFirstBlocks + n_best(), chosen);
  std::iota(chosen + kFirstBlocks + n_best(), chosen + n_chosen_, static_cast<int32_t>(last));
}

void choose_window(int n_chosen, int64_t position, int32_t* chosen) {
  std::iota(chosen, chosen + kFirstBlocks, 0);
  std::iota(chosen + kFirstBlocks, chosen + n_chosen,
            static_cast<int32_t>(n_blocks(position) - (n_chosen - kFirstBlocks)));
}

}  // namespace yocobit
