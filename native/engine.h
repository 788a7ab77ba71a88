// A model that runs: what its sessions share. Safe to use from several threads, which take turns.
//
// Letters:  V vocabulary
#pragma once

#include <cstdint>
#include <mutex>
#include <string>

#include "decoder.h"
#include "packed_model.h"
#include "session.h"
#include "thread_pool.h"

namespace yocobit {

enum class Logits { none, last, all };

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

  // Take in one token of each of n different sessions; write their logits [n][V]. What feed()
  // would return for each, bit for bit, while every weight is read once.
  void step(Session* const* sessions, const int32_t* tokens, int n, float* logits);

 private:
  void check(const Session& session, const int32_t* tokens, int64_t n) const;

  PackedModel model_;
  const Kernels& kernels_;
  ThreadPool pool_;
  Decoder decoder_;
  std::mutex mutex_;
  uint64_t n_steps_ = 0;
};

}  // namespace yocobit
