// The distribution over the next token: temperature and filters applied to logits.
//
// Letters:  V vocabulary
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernels.h"

namespace yocobit {

// Filters apply in this order, after the temperature.
struct SamplingFilters {
  double temperature;  // 0: argmax, ties broken by token id
  int64_t top_k;       // keep this many most probable tokens; 0 keeps all
  double top_p;        // nucleus: the fewest tokens whose probabilities reach this sum
  double min_p;        // tokens at least this times as probable as the most probable one
};

// Samples from logits; reuses its scratch between calls.
class TokenDistribution {
 public:
  explicit TokenDistribution(const Kernels& kernels) : kernels_(kernels) {}

  // Sample the next token from logits [V]: where the cumulative probability exceeds `uniform`, in
  // [0, 1). Ties are broken by token id; tokens e^86 times less probable than the most probable one
  // are never sampled. NaN counts as -infinity, so any logits give a token of the vocabulary.
  int32_t sample(const float* logits, int64_t V, const SamplingFilters& filters, double uniform);

 private:
  struct Candidate {
    float weight;  // probability relative to the most probable token
    int32_t token;
  };

  void compute_weights(const float* logits, int64_t V, float largest, double temperature);
  void drop_below(double least);
  void keep_top(int64_t top_k, double top_p);
  void collect_top(int64_t n);
  double collect_nucleus_bin(double wanted);
  void add_candidates(int64_t begin, int64_t end, float least, float below);
  double sum_blocks();
  int32_t find(double uniform);

  const Kernels& kernels_;
  std::vector<float> weights_;            // [V], zeros up to whole blocks; 0 is never sampled
  std::vector<double> sums_;              // of weights, by block or histogram bin
  std::vector<float> largest_, ordered_;  // largest weight by block; the same, partially sorted
  std::vector<Candidate> candidates_;
};

}  // namespace yocobit
