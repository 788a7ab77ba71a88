#include "engine/token_distribution.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

namespace yocobit {
namespace {

constexpr int64_t kBlock = 64;         // weights of a partial sum, a multiple of kLanes
constexpr float kNever = 4.5e-38f;     // about e^-86
constexpr double kLargestRate = 1e30;  // of 1 / temperature
// Histogram bins of weights: the exponent and the upper four bits of the mantissa.
constexpr int kBinShift = 19;

// Loops over lanes, so that compilers vectorise them.
float largest_of(const float* x, int64_t n, float least) {
  float lanes[kLanes];
  std::fill_n(lanes, kLanes, least);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
  }
  for (; i < n; ++i) lanes[0] = x[i] > lanes[0] ? x[i] : lanes[0];
  return *std::max_element(lanes, lanes + kLanes);
}

double block_sum(const float* x) {
  double lanes[kLanes] = {};
  for (int64_t i = 0; i < kBlock; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) lanes[j] += x[i + j];
  }
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
         ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

uint32_t bin_of(float weight) { return std::bit_cast<uint32_t>(weight) >> kBinShift; }
float begin_of(size_t bin) { return std::bit_cast<float>(static_cast<uint32_t>(bin) << kBinShift); }

}  // namespace

int32_t TokenDistribution::sample(const float* logits, int64_t V, const SamplingFilters& filters,
                                  double uniform) {
  const float largest = largest_of(logits, V, -std::numeric_limits<float>::infinity());
  if (filters.temperature == 0 || !std::isfinite(largest)) {
    const float* const best = std::find(logits, logits + V, largest);
    return best < logits + V ? static_cast<int32_t>(best - logits) : 0;
  }
  compute_weights(logits, V, largest, filters.temperature);
  if (filters.top_k > 0 || filters.top_p < 1) keep_top(filters.top_k, filters.top_p);
  if (filters.min_p > 0) drop_below(filters.min_p);
  return find(uniform);
}

void TokenDistribution::compute_weights(const float* logits, int64_t V, float largest,
                                        double temperature) {
  const int64_t whole = V / kBlock * kBlock;
  weights_.resize((V + kBlock - 1) / kBlock * kBlock);
  const float rate = static_cast<float>(std::min(1 / temperature, kLargestRate));
  kernels_.exponentials(logits, static_cast<int>(whole), largest, rate, weights_.data());
  float* rest = weights_.data() + whole;
  std::copy(logits + whole, logits + V, rest);
  std::fill(weights_.begin() + V, weights_.end(), -std::numeric_limits<float>::infinity());
  kernels_.exponentials(rest, static_cast<int>(weights_.size() - whole), largest, rate, rest);
  drop_below(kNever);
}

void TokenDistribution::drop_below(double least) {
  for (float& weight : weights_) weight = weight < least ? 0.0f : weight;
}

// Drop all but the top_k most probable tokens (0: all), and of those all but the fewest that reach
// top_p.
void TokenDistribution::keep_top(int64_t top_k, double top_p) {
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.weight != b.weight ? a.weight > b.weight : a.token < b.token;
  };
  const auto sum = [](auto from, auto to) {
    double total = 0;
    for (; from != to; ++from) total += from->weight;
    return total;
  };
  double wanted = std::numeric_limits<double>::infinity();
  if (top_k > 0) {
    collect_top(top_k);
  } else {
    wanted = top_p * sum_blocks();
    wanted -= collect_nucleus_bin(wanted);
  }
  auto begin = candidates_.begin(), end = candidates_.end();
  if (top_k > 0 && top_k < end - begin) {
    std::nth_element(begin, begin + top_k, end, before);
    end = begin + top_k;
  }
  if (top_k > 0 && top_p < 1) wanted = top_p * sum(begin, end);
  while (top_p < 1 && end - begin > 1) {  // bisect for the last candidate to keep
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, before);
    const double heavier = sum(begin, middle);
    if (heavier >= wanted) {
      end = middle;
    } else {
      wanted -= heavier;
      begin = middle;
    }
  }
  const Candidate last = *std::max_element(begin, end, before);
  drop_below(last.weight);
  for (const Candidate& candidate : candidates_) {
    if (before(last, candidate)) weights_[candidate.token] = 0;
  }
}

// Collect the candidates for the top n: the n-th largest of the blocks' maxima is a lower bound of
// the n-th largest weight.
void TokenDistribution::collect_top(int64_t n) {
  const int64_t n_blocks = static_cast<int64_t>(weights_.size()) / kBlock;
  largest_.clear();
  for (int64_t block = 0; block < n_blocks; ++block) {
    largest_.push_back(largest_of(&weights_[block * kBlock], kBlock, 0.0f));
  }
  float least = std::numeric_limits<float>::min();
  if (n < n_blocks) {
    ordered_ = largest_;
    std::nth_element(ordered_.begin(), ordered_.begin() + n - 1, ordered_.end(), std::greater<>());
    least = std::max(ordered_[n - 1], least);
  }
  candidates_.clear();
  for (int64_t block = 0; block < n_blocks; ++block) {
    if (largest_[block] >= least) add_candidates(block * kBlock, (block + 1) * kBlock, least, 2.0f);
  }
}

// Collect the tokens of the histogram bin in which the cumulative weight, from the most probable
// token down, reaches `wanted`; return the sum of the bins above it.
double TokenDistribution::collect_nucleus_bin(double wanted) {
  sums_.assign(bin_of(1.0f) + 1, 0.0);
  for (const float weight : weights_) sums_[bin_of(weight)] += weight;
  double above = 0;
  size_t bin = sums_.size() - 1;
  while (bin > 0 && above + sums_[bin] < wanted) above += sums_[bin--];
  while (sums_[bin] == 0) above -= sums_[++bin];  // rounding went past the last one
  candidates_.clear();
  add_candidates(0, static_cast<int64_t>(weights_.size()), begin_of(bin), begin_of(bin + 1));
  return above;
}

void TokenDistribution::add_candidates(int64_t begin, int64_t end, float least, float below) {
  for (int64_t token = begin; token < end; ++token) {
    const float weight = weights_[token];
    if (weight >= least && weight < below) {
      candidates_.push_back({weight, static_cast<int32_t>(token)});
    }
  }
}

// Sum the weights of each block; return the sum of all.
double TokenDistribution::sum_blocks() {
  sums_.clear();
  double total = 0;
  for (size_t begin = 0; begin < weights_.size(); begin += kBlock) {
    sums_.push_back(block_sum(&weights_[begin]));
    total += sums_.back();
  }
  return total;
}

// Return the token at which the cumulative share of the weights exceeds `uniform`.
int32_t TokenDistribution::find(double uniform) {
  double left = uniform * sum_blocks();
  size_t block = 0;
  while (block + 1 < sums_.size() && left >= sums_[block]) left -= sums_[block++];
  while (sums_[block] == 0) --block;  // rounding went past the last one with a weight
  size_t token = block * kBlock;
  for (size_t i = token; i < (block + 1) * kBlock && left >= 0; ++i) {
    if (weights_[i] == 0) continue;
    token = i;
    left -= weights_[i];
  }
  return static_cast<int32_t>(token);
}

}  // namespace yocobit
