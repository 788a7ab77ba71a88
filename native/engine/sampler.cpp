#include "engine/sampler.h"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <string>

namespace yocobit {

Pcg64::Pcg64(Word state, Word increment)
    : state_(static_cast<Uint128>(state.high) << 64 | state.low),
      increment_(static_cast<Uint128>(increment.high) << 64 | increment.low) {}

double Pcg64::uniform() {
  constexpr Uint128 kMultiplier =
      static_cast<Uint128>(0x2360ed051fc65da4) << 64 | 0x4385df649fccf645;
  state_ = state_ * kMultiplier + increment_;
  const uint64_t high = static_cast<uint64_t>(state_ >> 64), low = static_cast<uint64_t>(state_);
  const uint64_t bits = std::rotr(high ^ low, static_cast<int>(high >> 58));
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

Sampler::Sampler(const Penalties& penalties, const SamplingFilters& filters, Pcg64 random,
                 const std::vector<int32_t>& prompt, Bias bias)
    : penalties_(penalties), filters_(filters), bias_(std::move(bias)), random_(random) {
  const auto check = [&](int32_t token) {
    if (token < 0) {
      throw std::invalid_argument("sampler: tokens must not be negative but one is " +
                                  std::to_string(token));
    }
    largest_token_ = std::max(largest_token_, token);
  };
  for (const auto& [token, _] : bias_) check(token);
  if (penalties_.repetition == 1) return;
  for (const int32_t token : prompt) {
    check(token);
    counts_.emplace(token, 0);
  }
}

int32_t Sampler::sample(const float* logits, int64_t V, SamplerScratch& scratch) {
  const std::lock_guard<ForkSafeMutex> lock(mutex_);
  const float* adjusted = adjust(logits, V, scratch.logits);
  const int32_t token = scratch.distribution.sample(adjusted, V, filters_, random_.uniform());
  if (!is_neutral()) ++counts_[token];
  ++n_generated_;
  return token;
}

bool Sampler::is_neutral() const {
  return penalties_.repetition == 1 && penalties_.presence == 0 && penalties_.frequency == 0 &&
         bias_.empty();
}

// Return the logits with penalties and bias: in `adjusted`, unless there are none.
const float* Sampler::adjust(const float* logits, int64_t V, std::vector<float>& adjusted) const {
  if (is_neutral()) return logits;
  if (largest_token_ >= V) {
    throw std::out_of_range("sampler: token " + std::to_string(largest_token_) +
                            " of prompt or bias must be below the vocabulary's " +
                            std::to_string(V));
  }
  adjusted.assign(logits, logits + V);
  for (const auto& [token, count] : counts_) {
    if (token >= V) continue;  // generated from a larger vocabulary
    float& logit = adjusted[token];
    if (penalties_.repetition != 1) {
      logit = logit > 0 ? logit / penalties_.repetition : logit * penalties_.repetition;
    }
    if (count == 0) continue;
    logit -= penalties_.presence + penalties_.frequency * static_cast<float>(count);
  }
  for (const auto& [token, bias] : bias_) adjusted[token] += bias;
  return adjusted.data();
}

}  // namespace yocobit
