#include "block_index.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace yocobit {
namespace {

constexpr float kLargestHalf = 65504.0f;
constexpr float kLowest = std::numeric_limits<float>::lowest();

}  // namespace

BlockIndex::BlockIndex(const ModelConfig& config, int64_t max_tokens)
    : n_heads_(config.n_heads),
      n_kv_heads_(config.n_kv_heads),
      head_dim_(config.head_dim()),
      n_chosen_(config.cross_blocks()),
      capacity_(n_blocks(max_tokens - 1)),
      stride_(round_up(capacity_, kLanes)),
      bounds_(make_buffer<uint16_t>(n_kv_heads_ * capacity_ * 2 * head_dim_)),
      parts_(make_buffer<float>(size_t{2} * n_heads_ * head_dim_)),
      scores_(make_buffer<float>(n_heads_ * stride_)),
      order_(make_buffer<int32_t>(n_kv_heads_ * capacity_)) {}

int64_t BlockIndex::bytes() const {
  return n_kv_heads_ * capacity_ * int64_t{4} * head_dim_ + int64_t{8} * n_heads_ * head_dim_ +
         n_heads_ * stride_ * int64_t{4} + n_kv_heads_ * capacity_ * int64_t{4};
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
  const int64_t padded = round_up(n, kLanes);
  for (int i = 0; i < n_queries; ++i) {
    float* row = scores + i * stride_;
    for (int64_t b = 0; b < n; ++b) row[b] = row[b] > kLowest ? row[b] : kLowest;  // NaN
    std::fill(row + n, row + padded, kLowest);
    const float largest = *std::max_element(row, row + n);
    kernels.exponentials(row, static_cast<int>(padded), largest, scale, row);
    const float share = 1.0f / std::accumulate(row, row + n, 0.0f);
    for (int64_t b = 0; b < n; ++b) {
      scores[b] = i == 0 ? share * row[b] : scores[b] + share * row[b];
    }
  }
}

void BlockIndex::choose(const Kernels& kernels, int head, const float* q, int n_queries,
                        int64_t position, int32_t* chosen) {
  const int64_t end = n_blocks(position), last = end - kLastBlocks;
  score(kernels, head, q, n_queries, end - 1);
  const float* scores = &scores_[head * n_queries * stride_];
  int32_t* order = &order_[head * capacity_];
  const int64_t n = last - kFirstBlocks;
  std::iota(order, order + n, kFirstBlocks);
  const int n_best = n_chosen_ - kFirstBlocks - kLastBlocks;
  std::nth_element(order, order + n_best, order + n, [&](int32_t a, int32_t b) {
    return scores[a] != scores[b] ? scores[a] > scores[b] : a < b;
  });
  std::sort(order, order + n_best);
  std::iota(chosen, chosen + kFirstBlocks, 0);
  std::copy_n(order, n_best, chosen + kFirstBlocks);
  std::iota(chosen + kFirstBlocks + n_best, chosen + n_chosen_, static_cast<int32_t>(last));
}

void choose_window(int n_chosen, int64_t position, int32_t* chosen) {
  std::iota(chosen, chosen + kFirstBlocks, 0);
  std::iota(chosen + kFirstBlocks, chosen + n_chosen,
            static_cast<int32_t>(n_blocks(position) - (n_chosen - kFirstBlocks)));
}

}  // namespace yocobit
