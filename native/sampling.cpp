#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace yocobit {
namespace {

constexpr int64_t kBlock = 64;         // weights that are summed together
constexpr float kNever = 4.5e-38f;     // about e^-86
constexpr double kLargestRate = 1e30;  // of temperatures next to 0

}  // namespace

int32_t TokenDrawer::draw(const float* logits, int64_t V, const Draw& how) {
  int32_t best = 0;
  float largest = -std::numeric_limits<float>::infinity();
  for (int32_t token = 0; token < V; ++token) {
    if (logits[token] > largest) largest = logits[best = token];
  }
  if (how.temperature == 0 || !std::isfinite(largest)) return best;
  weigh(logits, V, largest, how.temperature);
  if (how.top_k > 0 || how.top_p < 1) keep_likeliest(how.top_k, how.top_p);
  if (how.min_p > 0) drop([&](float weight, int32_t) { return weight < how.min_p; });
  return find(how.uniform);
}

void TokenDrawer::weigh(const float* logits, int64_t V, float largest, double temperature) {
  weights_.resize((V + kBlock - 1) / kBlock * kBlock);
  std::copy_n(logits, V, weights_.begin());
  std::fill(weights_.begin() + V, weights_.end(), -std::numeric_limits<float>::infinity());
  const float rate = static_cast<float>(std::min(1 / temperature, kLargestRate));
  kernels_.exponentials(weights_.data(), static_cast<int>(weights_.size()), largest, rate,
                        weights_.data());
  drop([](float weight, int32_t) { return weight < kNever; });
}

template <typename Condition>
void TokenDrawer::drop(const Condition& condition) {
  for (size_t i = 0; i < weights_.size(); ++i) {
    if (condition(weights_[i], static_cast<int32_t>(i))) weights_[i] = 0;
  }
}

// Drop all but the top_k likeliest (0: all), and of those all but the fewest that reach top_p.
void TokenDrawer::keep_likeliest(int64_t top_k, double top_p) {
  candidates_.clear();
  for (size_t i = 0; i < weights_.size(); ++i) {
    if (weights_[i] > 0) candidates_.push_back({weights_[i], static_cast<int32_t>(i)});
  }
  auto begin = candidates_.begin(), end = candidates_.end();
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.weight != b.weight ? a.weight > b.weight : a.token < b.token;
  };
  const auto sum = [](auto from, auto to) {
    double total = 0;
    for (; from != to; ++from) total += from->weight;
    return total;
  };
  if (top_k > 0 && top_k < end - begin) {
    std::nth_element(begin, begin + top_k, end, before);
    end = begin + top_k;
  }
  double wanted = top_p < 1 ? top_p * sum(begin, end) : std::numeric_limits<double>::infinity();
  while (top_p < 1 && end - begin > 1) {  // halve where the last one to be kept is
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
  drop([&](float weight, int32_t token) { return before(last, {weight, token}); });
}

// Return the token at a place, in [0, 1), of the sum of all weights.
int32_t TokenDrawer::find(double uniform) {
  sums_.clear();
  double total = 0;
  for (size_t begin = 0; begin < weights_.size(); begin += kBlock) {
    sums_.push_back(0);
    for (size_t i = begin; i < begin + kBlock; ++i) sums_.back() += weights_[i];
    total += sums_.back();
  }
  double left = uniform * total;
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
