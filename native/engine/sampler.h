// The sampler of one sequence: logit bias, penalties, filters and random numbers.
//
// Letters:  V vocabulary
#pragma once

#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/token_distribution.h"
#include "runtime/fork.h"

namespace yocobit {

// NumPy's PCG64 (PCG XSL RR 128/64): the same state gives the numbers of numpy.random.Generator.
class Pcg64 {
 public:
  struct Word {  // of 128 bits
    uint64_t high, low;
  };

  Pcg64(Word state, Word increment);

  double uniform();  // in [0, 1), of 53 bits

 private:
  using Uint128 = unsigned __int128;
  Uint128 state_, increment_;
};

struct Penalties {
  float repetition;  // divides positive logits of seen tokens, multiplies the others; 1: none
  float presence;    // subtracted from logits of generated tokens
  float frequency;   // the same, for each time that the token was generated
};

// Scratch that the samplers of a thread share.
struct SamplerScratch {
  explicit SamplerScratch(const Kernels& kernels) : distribution(kernels) {}

  TokenDistribution distribution;
  std::vector<float> logits;  // [V], with bias and penalties
};

class Sampler {
 public:
  using Bias = std::vector<std::pair<int32_t, float>>;  // token, value added to its logit

  // Tokens of `prompt` count as seen for the repetition penalty. Tokens must not be negative.
  Sampler(const Penalties& penalties, const SamplingFilters& filters, Pcg64 random,
          const std::vector<int32_t>& prompt, Bias bias);

  // Return the next token after logits [V]; std::out_of_range if the prompt or the bias has a token
  // outside the vocabulary. Concurrent calls are serialised.
  int32_t sample(const float* logits, int64_t V, SamplerScratch& scratch);

  int64_t n_generated() const { return n_generated_; }

 private:
  const float* adjust(const float* logits, int64_t V, std::vector<float>& adjusted) const;
  bool is_neutral() const;

  const Penalties penalties_;
  const SamplingFilters filters_;
  const Bias bias_;
  int32_t largest_token_ = -1;  // of prompt and bias
  Pcg64 random_;
  std::unordered_map<int32_t, int64_t> counts_;  // times generated; 0 for tokens of the prompt only
  int64_t n_generated_ = 0;
  ForkSafeMutex mutex_;
};

}  // namespace yocobit
