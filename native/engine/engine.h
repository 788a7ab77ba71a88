// A model that runs: what its sessions share. Safe to use from several threads, which take turns.
//
// Letters:  V vocabulary
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "engine/decoder.h"
#include "engine/session.h"
#include "model/packed_model.h"
#include "runtime/thread_pool.h"

namespace yocobit {

enum class Logits { none, last, all };

struct Prompt {  // tokens whose logits nobody asks for
  Session* session;
  const int32_t* tokens;
  int64_t n;
};

class Engine {
 public:
  Engine(const std::string& path, const ModelConfig& config,
         const std::map<std::string, TensorEntry>& tensors, const Kernels& kernels, int n_threads);

  const PackedModel& model() const { return model_; }
  const Kernels& kernels() const { return kernels_; }
  int n_threads() const { return pool_.size(); }
  int64_t buffer_bytes() const { return decoder_.buffer_bytes(); }

  // Take in tokens[n]; write the logits asked for, [V] or [n][V]. Throws std::invalid_argument,
  // with nothing changed, for a token outside the vocabulary or more tokens than there is room.
  void feed(Session& session, const int32_t* tokens, int64_t n, Logits which, float* logits);

  // Take in one token of each of n different sessions, and parts of the prompts of others; write
  // the logits [n][V] of the n. Each gets what feed() would give it, bit for bit, while every
  // weight is read once for up to Decoder::kMaxRows tokens. Throws as feed() does.
  void step(const std::vector<Prompt>& prompts, Session* const* sessions, const int32_t* tokens,
            int n, float* logits);

  // As of Session, in turn with the above; std::invalid_argument if `size` is not what there is.
  void copy_state(Session& session, uint8_t* out, int64_t size);
  void copy_positions(Session& session, int64_t begin, int64_t end, uint8_t* out, int64_t size);
  void restore(Session& session, const int32_t* tokens, int64_t n, Bytes state, int64_t kept,
               const std::vector<Bytes>& pieces);

 private:
  void check_own(const Session& session) const;
  void check(const Session& session, const int32_t* tokens, int64_t n) const;
  void enter_step(Session& session);
  void forward(int64_t n_logits, float* logits);

  PackedModel model_;
  const Kernels& kernels_;
  ThreadPool pool_;
  Decoder decoder_;
  std::mutex mutex_;
  uint64_t n_steps_ = 0;
  std::vector<Row> rows_;  // of the call at work
};

}  // namespace yocobit
