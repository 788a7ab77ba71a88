// From logits to the next token.
//
// Letters:  V vocabulary
#pragma once

#include <cstdint>
#include <vector>

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
  // Return the next token after logits [V]. Equals go by token. A NaN counts as -infinity, so any
  // logits give a token of the vocabulary.
  int32_t draw(const float* logits, int64_t V, const Draw& how);

 private:
  struct Candidate {
    double weight;  // its probability by the likeliest's
    int32_t token;
  };

  int64_t keep(const Draw& how);
  void sort_first(int64_t n);

  std::vector<Candidate> candidates_;
  int64_t n_sorted_ = 0;
};

}  // namespace yocobit
