#include "engine.h"

#include <algorithm>
#include <cfenv>
#include <stdexcept>
#include <utility>

namespace yocobit {
namespace {

// Denormals and rounding as the standard has them while we compute, whatever the caller set.
class DefaultFloatEnvironment {
 public:
  DefaultFloatEnvironment() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatEnvironment() { std::fesetenv(&saved_); }

 private:
  std::fenv_t saved_;
};

}  // namespace

Engine::Engine(const std::string& path, const ModelConfig& config,
               const std::map<std::string, TensorEntry>& tensors, const Kernels& kernels,
               int n_threads)
    : model_(path, config, tensors),
      kernels_(kernels),
      pool_(n_threads),
      decoder_(model_, kernels_, pool_) {}

void Engine::feed(Session& session, const int32_t* tokens, int64_t n, Logits which, float* logits) {
  const std::lock_guard<std::mutex> turn(mutex_);
  check(session, tokens, n);
  const DefaultFloatEnvironment environment;
  const int64_t V = model_.config.vocab_size;
  Row rows[Decoder::kMaxRows];
  for (int64_t begin = 0; begin < n; begin += Decoder::kMaxRows) {
    const int size = static_cast<int>(std::min<int64_t>(Decoder::kMaxRows, n - begin));
    for (int i = 0; i < size; ++i) {
      rows[i] = {.session = &session, .position = session.position + i, .token = tokens[begin + i]};
    }
    const bool has_last = which == Logits::last && begin + size == n;
    const int n_logits = which == Logits::all ? size : has_last ? 1 : 0;
    decoder_.forward(rows, size, n_logits, which == Logits::all ? logits + begin * V : logits);
    session.position += size;
  }
}

void Engine::step(Session* const* sessions, const int32_t* tokens, int n, float* logits) {
  const std::lock_guard<std::mutex> turn(mutex_);
  ++n_steps_;
  for (int i = 0; i < n; ++i) {
    check(*sessions[i], tokens + i, 1);
    if (std::exchange(sessions[i]->last_step, n_steps_) == n_steps_) {
      throw std::invalid_argument("step: sessions must differ but one is given twice");
    }
  }
  const DefaultFloatEnvironment environment;
  const int64_t V = model_.config.vocab_size;
  Row rows[Decoder::kMaxRows];
  for (int begin = 0; begin < n; begin += Decoder::kMaxRows) {
    const int size = std::min(Decoder::kMaxRows, n - begin);
    for (int i = 0; i < size; ++i) {
      Session& session = *sessions[begin + i];
      rows[i] = {.session = &session, .position = session.position, .token = tokens[begin + i]};
    }
    decoder_.forward(rows, size, size, logits + begin * V);
    for (int i = 0; i < size; ++i) ++sessions[begin + i]->position;
  }
}

void Engine::check(const Session& session, const int32_t* tokens, int64_t n) const {
  if (&session.model != &model_) {
    throw std::invalid_argument("session: must be of this engine but is of another");
  }
  const int V = model_.config.vocab_size;
  for (int64_t i = 0; i < n; ++i) {
    if (tokens[i] < 0 || tokens[i] >= V) {
      throw std::invalid_argument("token " + std::to_string(i) + " must be in [0, " +
                                  std::to_string(V) + ") but is " + std::to_string(tokens[i]));
    }
  }
  if (n > session.max_tokens - session.position) {
    throw std::invalid_argument("session: has room for " + std::to_string(session.max_tokens) +
                                " tokens and holds " + std::to_string(session.position) + ", so " +
                                std::to_string(n) +
                                " more do not fit; make it with a larger max_tokens");
  }
}

}  // namespace yocobit
