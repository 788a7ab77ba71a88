#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace yocobit {

int32_t TokenDrawer::draw(const float* logits, int64_t V, const Draw& how) {
  int32_t best = 0;
  double largest = -std::numeric_limits<double>::infinity();
  for (int32_t token = 0; token < V; ++token) {
    if (logits[token] > largest) largest = logits[best = token];
  }
  if (how.temperature == 0 || !std::isfinite(largest)) return best;
  candidates_.clear();
  double sum = 0;
  for (int32_t token = 0; token < V; ++token) {
    const double weight = std::exp((logits[token] - largest) / how.temperature);
    if (!(weight > 0)) continue;  // -infinity, or so unlikely that no draw would find it
    candidates_.push_back({weight, token});
    sum += weight;
  }
  n_sorted_ = 0;
  const int64_t kept = keep(how);
  if (kept < static_cast<int64_t>(candidates_.size())) {
    sum = 0;
    for (int64_t i = 0; i < kept; ++i) sum += candidates_[i].weight;
  }
  const double wanted = how.uniform * sum;
  double reached = 0;
  for (int64_t i = 0; i < kept; ++i) {
    reached += candidates_[i].weight;
    if (reached > wanted) return candidates_[i].token;
  }
  return candidates_[kept - 1].token;
}

// Bring what the filters keep to the front, likeliest first, and return its number; nothing moves
// if they keep all.
int64_t TokenDrawer::keep(const Draw& how) {
  int64_t kept = static_cast<int64_t>(candidates_.size());
  if (how.top_k > 0 && how.top_k < kept) sort_first(kept = how.top_k);
  if (how.top_p < 1) {
    double sum = 0, reached = 0;
    if (n_sorted_ == 0) {
      for (const Candidate& candidate : candidates_) sum += candidate.weight;
    } else {
      for (int64_t i = 0; i < kept; ++i) sum += candidates_[i].weight;
    }
    for (int64_t i = 0; i < kept; ++i) {
      if (i >= n_sorted_) sort_first(std::min(kept, 4 * i + 64));
      reached += candidates_[i].weight;
      if (reached >= how.top_p * sum) kept = i + 1;
    }
  }
  if (how.min_p > 0) {
    for (int64_t i = 0; i < kept; ++i) {
      if (i >= n_sorted_) sort_first(std::min(kept, 4 * i + 64));
      if (candidates_[i].weight < how.min_p) kept = i;
    }
  }
  return kept;
}

// Sort the n likeliest candidates to the front, of which n_sorted_ are there already.
void TokenDrawer::sort_first(int64_t n) {
  std::partial_sort(candidates_.begin() + n_sorted_, candidates_.begin() + n, candidates_.end(),
                    [](const Candidate& a, const Candidate& b) {
                      return a.weight != b.weight ? a.weight > b.weight : a.token < b.token;
                    });
  n_sorted_ = n;
}

}  // namespace yocobit
