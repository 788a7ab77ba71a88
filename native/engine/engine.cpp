#include "engine/engine.h"

#include <algorithm>
#include <cfenv>
#include <stdexcept>
#include <utility>

namespace yocobit {
namespace {

// The default rounding mode and denormal handling while the engine computes, whatever the caller
// has set.
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

void check_size(int64_t needed, int64_t size) {
  if (size != needed) {
    throw std::invalid_argument("session: " + std::to_string(needed) +
                                " bytes must be copied but there is room for " +
                                std::to_string(size));
  }
}

void append_rows(Session& session, const int32_t* tokens, int64_t n, std::vector<BatchRow>& rows) {
  for (int64_t i = 0; i < n; ++i) {
    rows.push_back({.session = &session, .position = session.position + i, .token = tokens[i]});
  }
}

}  // namespace

Engine::Engine(const std::string& path, const ModelConfig& config, const TensorEntries& tensors,
               const KernelFamily& kernels, int n_threads)
    : model_(path, config, tensors),
      kernels_(kernels),
      pool_(n_threads),
      decoder_(model_, kernels_.kernels, pool_),
      workspace_(model_) {
  rows_.reserve(kMaxBatchTokens);
}

void Engine::feed(Session& session, const int32_t* tokens, int64_t n, Logits which, float* logits) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check(session, tokens, n);
  for (int64_t begin = 0; begin < n; begin += kMaxBatchTokens) {
    const int64_t size = std::min<int64_t>(kMaxBatchTokens, n - begin);
    const bool has_last = which == Logits::last && begin + size == n;
    rows_.clear();
    append_rows(session, tokens + begin, size, rows_);
    forward(which == Logits::all ? size : has_last, Output::logits, logits);
    if (which == Logits::all) logits += size * model_.config.vocab_size;
  }
}

void Engine::hidden_states(Session& session, const int32_t* tokens, int64_t n, float* hidden) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check(session, tokens, n);
  for (int64_t begin = 0; begin < n; begin += kMaxBatchTokens) {
    const int64_t size = std::min<int64_t>(kMaxBatchTokens, n - begin);
    rows_.clear();
    append_rows(session, tokens + begin, size, rows_);
    forward(size, Output::hidden_state, hidden + begin * model_.config.d_model);
  }
}

void Engine::step(const std::vector<PrefillChunk>& chunks, Session* const* sessions,
                  const int32_t* tokens, int n, float* logits) {
  const std::lock_guard<std::mutex> lock(mutex_);
  ++n_steps_;
  rows_.clear();
  for (const PrefillChunk& chunk : chunks) {
    check(*chunk.session, chunk.tokens, chunk.n);
    enter_step(*chunk.session);
    append_rows(*chunk.session, chunk.tokens, chunk.n, rows_);
  }
  for (int i = 0; i < n; ++i) {
    check(*sessions[i], tokens + i, 1);
    enter_step(*sessions[i]);
    append_rows(*sessions[i], tokens + i, 1, rows_);
  }
  forward(n, Output::logits, logits);
}

// Consume rows_; write the outputs of the last n_outputs of them.
void Engine::forward(int64_t n_outputs, Output output, float* out) {
  const DefaultFloatEnvironment environment;
  const int64_t n = static_cast<int64_t>(rows_.size());
  const int64_t width = output == Output::logits ? model_.config.vocab_size : model_.config.d_model;
  for (int64_t begin = 0; begin < n; begin += kMaxBatchTokens) {
    const int size = static_cast<int>(std::min<int64_t>(kMaxBatchTokens, n - begin));
    const int64_t first = n - n_outputs;  // row that has an output
    const int64_t wanted = std::clamp<int64_t>(begin + size - first, 0, size);
    batch_.assign(&rows_[begin], size);
    decoder_.forward(batch_, workspace_, static_cast<int>(wanted), output,
                     out + std::max<int64_t>(0, begin - first) * width);
    for (int64_t row = begin; row < begin + size; ++row) {
      Session& session = *rows_[row].session;
      session.tokens[session.position++] = rows_[row].token;
    }
  }
}

void Engine::copy_state(Session& session, uint8_t* out, int64_t size) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_own(session);
  check_size(session.state_bytes(session.position), size);
  session.copy_state(out);
}

void Engine::copy_positions(Session& session, int64_t begin, int64_t end, uint8_t* out,
                            int64_t size) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_own(session);
  if (begin < 0 || begin > end || end > session.position) {
    throw std::invalid_argument("session: holds " + std::to_string(session.position) +
                                " tokens, so positions " + std::to_string(begin) + " to " +
                                std::to_string(end) + " cannot be copied");
  }
  check_size((end - begin) * session.bytes_per_position(), size);
  session.copy_positions(begin, end, out);
}

void Engine::restore(Session& session, const int32_t* tokens, int64_t n, Bytes state, int64_t kept,
                     const std::vector<Bytes>& pieces) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_own(session);
  const DefaultFloatEnvironment environment;  // for the block index
  session.restore(kernels_.kernels, tokens, n, state, kept, pieces);
}

void Engine::enter_step(Session& session) {
  if (std::exchange(session.last_step, n_steps_) == n_steps_) {
    throw std::invalid_argument("step: sessions must differ but one is given twice");
  }
}

void Engine::check_own(const Session& session) const {
  if (&session.model != &model_) {
    throw std::invalid_argument("session: must be of this engine but is of another");
  }
}

void Engine::check(const Session& session, const int32_t* tokens, int64_t n) const {
  check_own(session);
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
