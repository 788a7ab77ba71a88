// From logits to the next token.
//
// Letters:  V vocabulary
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernels.h"

namespace yocobit {

// How a token is drawn; filters apply in this order, after the temperature.
struct Draw {
  double temperature;  // 0 takes the likeliest token, the first of equals
  int64_t top_k;       // keep this many likeliest tokens; 0 keeps all
  double top_p;        // the fewest tokens whose probabilities reach this sum
  double min_p;        // tokens at least this times as likely as the likeliest
  double uniform;      // in [0, 1): where in the sum of what is kept
};

// Draws tokens; keeps its work space.
class TokenDrawer {
 public:
  explicit TokenDrawer(const Kernels& kernels) : kernels_(kernels) {}

  // Return the next token after logits [V]. Equals go by token; those that are e^86 times less
  // likely than the likeliest are not drawn. A NaN counts as -infinity, so any logits give a token
  // of the vocabulary.
  int32_t draw(const float* logits, int64_t V, const Draw& how);

 private:
  struct Candidate {
    float weight;  // its probability by the likeliest's
    int32_t token;
  };

  void weigh(const float* logits, int64_t V, float largest, double temperature);
  void drop_below(double least);
  void keep_likeliest(int64_t top_k, double top_p);
  void find_candidates(int64_t n);
  double find_last_kept(double wanted);
  void add_candidates(int64_t begin, int64_t end, float least, float below);
  double sum_blocks();
  int32_t find(double uniform);

  const Kernels& kernels_;
  std::vector<float> weights_;            // [V] and zeros up to whole blocks; 0 is not drawn
  std::vector<double> sums_;              // of weights, by block
  std::vector<float> largest_, ordered_;  // weights of blocks
  std::vector<Candidate> candidates_;
};

}  // namespace yocobit
