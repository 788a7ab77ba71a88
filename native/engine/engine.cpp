#include "engine/engine.h"

#include <algorithm>
#include <atomic>
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

constexpr int64_t kCheckedBytes = 1 << 26;  // by find_problems, before the engine is free again

void check_token(int64_t index, int32_t token, int vocab_size) {
  if (token >= 0 && token < vocab_size) return;
  throw std::invalid_argument("token " + std::to_string(index) + " must be in [0, " +
                              std::to_string(vocab_size) + ") but is " + std::to_string(token));
}

void check_size(int64_t needed, int64_t size) {
  if (size != needed) {
    throw std::invalid_argument("session: " + std::to_string(needed) +
                                " bytes must be copied but there is room for " +
                                std::to_string(size));
  }
}

}  // namespace

Engine::Engine(const std::string& path, const ModelConfig& config, const TensorEntries& tensors,
               const KernelFamily& kernels, int n_threads)
    : model_(path, config, tensors),
      kernels_(kernels),
      pool_(n_threads),
      decoder_(model_, kernels_.kernels, pool_),
      workspace_(model_),
      batch_(max_batch_tokens()) {
  rows_.reserve(max_batch_tokens());
}

void Engine::reserve(int64_t max_tokens) {
  const auto lock = enter();
  workspace_.reserve(model_.config, max_tokens);
}

std::vector<std::string> Engine::find_problems(Checkpoint checkpoint) {
  std::vector<std::string> problems;
  for (const StoredTensor& tensor : model_.tensors) {
    const int64_t per_call = kCheckedBytes / tensor.rule->item_bytes;
    for (int64_t begin = 0; begin < tensor.n_items; begin += per_call) {
      checkpoint();
      const auto lock = enter();
      const int64_t n = std::min(per_call, tensor.n_items - begin);
      std::atomic<int64_t> first{tensor.n_items};
      pool_.parallel_for(n, [&](int64_t from, int64_t to) {
        const int64_t end = begin + to;
        const int64_t found = tensor.rule->find_invalid(tensor.data, begin + from, end);
        int64_t least = first;
        while (found < end && found < least && !first.compare_exchange_weak(least, found)) {
        }
      });
      if (first == tensor.n_items) continue;
      problems.push_back(tensor.problem(first));
      break;
    }
  }
  return problems;
}

void Engine::feed(Session& session, const int32_t* tokens, int64_t n, Logits which, float* logits,
                  Checkpoint checkpoint) {
  const int64_t n_outputs = which == Logits::all ? n : which == Logits::last;
  consume(session, tokens, n, n_outputs, Output::logits, logits, checkpoint);
}

void Engine::hidden_states(Session& session, const int32_t* tokens, int64_t n, float* hidden,
                           Checkpoint checkpoint) {
  consume(session, tokens, n, n, Output::hidden_state, hidden, checkpoint);
}

// Consume tokens [n] of a session; write the outputs of the last n_outputs of them.
void Engine::consume(Session& session, const int32_t* tokens, int64_t n, int64_t n_outputs,
                     Output output, float* out, Checkpoint checkpoint) {
  const int64_t width = output == Output::logits ? model_.config.vocab_size : model_.config.d_model;
  const int64_t first_output = n - n_outputs;
  int64_t start = 0;
  for (int64_t begin = 0; begin < n; begin += max_batch_tokens()) {
    if (begin > 0) checkpoint();
    const auto lock = enter();
    if (begin == 0) {
      check(session, tokens, n);
      if (session.position == 0) model_.file().check_unchanged();
      start = session.position;
    } else if (session.position != start + begin) {
      throw std::runtime_error(
          "session: must be used by one thread at a time but another changed it meanwhile");
    }
    const int64_t size = std::min<int64_t>(max_batch_tokens(), n - begin);
    rows_.clear();
    append_rows(session, tokens + begin, size);
    run_batch(static_cast<int>(std::clamp<int64_t>(begin + size - first_output, 0, size)), output,
              out + std::max<int64_t>(0, begin - first_output) * width);
  }
}

void Engine::step(const std::vector<PrefillChunk>& chunks, Session* const* sessions,
                  const int32_t* tokens, int n, float* logits, Checkpoint checkpoint) {
  int64_t n_rows = n;
  for (const PrefillChunk& chunk : chunks) n_rows += chunk.n;
  {
    const auto lock = enter();
    ++n_steps_;
    for (const PrefillChunk& chunk : chunks) {
      check(*chunk.session, chunk.tokens, chunk.n);
      enter_step(*chunk.session);
      if (chunk.session->position == 0) model_.file().check_unchanged();
    }
    for (int i = 0; i < n; ++i) {
      check(*sessions[i], tokens + i, 1);
      enter_step(*sessions[i]);
    }
    if (n_rows <= max_batch_tokens()) {
      rows_.clear();
      for (const PrefillChunk& chunk : chunks) append_rows(*chunk.session, chunk.tokens, chunk.n);
      for (int i = 0; i < n; ++i) append_rows(*sessions[i], tokens + i, 1);
      run_batch(n, Output::logits, logits);
      return;
    }
  }
  for (const PrefillChunk& chunk : chunks) {
    consume(*chunk.session, chunk.tokens, chunk.n, 0, Output::logits, nullptr, checkpoint);
    checkpoint();
  }
  for (int begin = 0; begin < n; begin += max_batch_tokens()) {
    const auto lock = enter();
    const int size = std::min(max_batch_tokens(), n - begin);
    rows_.clear();
    for (int i = begin; i < begin + size; ++i) {
      check(*sessions[i], tokens + i, 1);
      append_rows(*sessions[i], tokens + i, 1);
    }
    run_batch(size, Output::logits, logits + int64_t{begin} * model_.config.vocab_size);
  }
}

// Another thread may change `tokens` after check(), so each is checked again where it is read.
void Engine::append_rows(Session& session, const int32_t* tokens, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const int32_t token = tokens[i];
    check_token(i, token, model_.config.vocab_size);
    rows_.push_back({.session = &session, .position = session.position + i, .token = token});
  }
}

// Consume rows_; write the outputs of the last n_outputs of them.
void Engine::run_batch(int n_outputs, Output output, float* out) {
  if (rows_.empty()) return;
  const DefaultFloatEnvironment environment;
  batch_.assign(rows_.data(), static_cast<int>(rows_.size()));
  decoder_.forward(batch_, workspace_, n_outputs, output, out);
  for (const BatchRow& row : rows_) {
    row.session->tokens[row.position] = row.token;
    row.session->position = row.position + 1;
  }
}

void Engine::copy_state(Session& session, uint8_t* out, int64_t size) {
  const auto lock = enter();
  check_own(session);
  check_size(session.state_bytes(session.position), size);
  session.copy_state(out);
}

void Engine::copy_positions(Session& session, int64_t begin, int64_t end, uint8_t* out,
                            int64_t size) {
  const auto lock = enter();
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
  const auto lock = enter();
  check_own(session);
  const DefaultFloatEnvironment environment;  // for the block index
  session.restore(kernels_.kernels, tokens, n, state, kept, pieces);
}

// Lock the engine; its threads then exist in this process.
std::unique_lock<ForkSafeMutex> Engine::enter() {
  std::unique_lock<ForkSafeMutex> lock(mutex_);
  pool_.restart_after_fork();
  return lock;
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
  for (int64_t i = 0; i < n; ++i) check_token(i, tokens[i], V);
  if (n > session.max_tokens - session.position) {
    throw std::invalid_argument("session: has room for " + std::to_string(session.max_tokens) +
                                " tokens and holds " + std::to_string(session.position) + ", so " +
                                std::to_string(n) +
                                " more do not fit; make it with a larger max_tokens");
  }
}

}  // namespace yocobit
