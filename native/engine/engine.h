// A packed model, the threads and the buffers that its sessions share. Calls from several threads
// are serialised.
//
// Letters:  V vocabulary   C model width
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "engine/batch.h"
#include "engine/decoder.h"
#include "engine/session.h"
#include "engine/workspace.h"
#include "kernels/family.h"
#include "model/packed_model.h"
#include "runtime/thread_pool.h"

namespace yocobit {

enum class Logits { none, last, all };

// A part of a prompt that a step prefills without logits.
struct PrefillChunk {
  Session* session;
  const int32_t* tokens;
  int64_t n;
};

class Engine {
 public:
  Engine(const std::string& path, const ModelConfig& config, const TensorEntries& tensors,
         const KernelFamily& kernels, int n_threads);

  const PackedModel& model() const { return model_; }
  const KernelFamily& kernels() const { return kernels_; }
  int n_threads() const { return pool_.size(); }
  int64_t buffer_bytes() const { return workspace_.size_bytes; }

  // Consume tokens [n]; write the requested logits, [V] or [n][V]. Throws std::invalid_argument,
  // with nothing changed, for a token outside the vocabulary or more tokens than the session has
  // room for.
  void feed(Session& session, const int32_t* tokens, int64_t n, Logits which, float* logits);

  // The same, but write the hidden states [n][C] after the final norm in place of logits.
  void hidden_states(Session& session, const int32_t* tokens, int64_t n, float* hidden);

  // Decode one token in each of n sessions and prefill chunks in others; all sessions must differ.
  // Write the logits [n][V] of the decoded tokens. Results equal those of feed(), bit for bit, but
  // weights are read once for up to kMaxBatchTokens tokens. Throws as feed() does.
  void step(const std::vector<PrefillChunk>& chunks, Session* const* sessions,
            const int32_t* tokens, int n, float* logits);

  // As in Session, serialised with other calls; std::invalid_argument for a wrong `size`.
  void copy_state(Session& session, uint8_t* out, int64_t size);
  void copy_positions(Session& session, int64_t begin, int64_t end, uint8_t* out, int64_t size);
  void restore(Session& session, const int32_t* tokens, int64_t n, Bytes state, int64_t kept,
               const std::vector<Bytes>& pieces);

 private:
  void check_own(const Session& session) const;
  void check(const Session& session, const int32_t* tokens, int64_t n) const;
  void enter_step(Session& session);
  void forward(int64_t n_outputs, Output output, float* out);

  PackedModel model_;
  const KernelFamily& kernels_;
  ThreadPool pool_;
  Decoder decoder_;
  Workspace workspace_;
  Batch batch_;
  std::vector<BatchRow> rows_;  // of the current call, any number
  std::mutex mutex_;
  uint64_t n_steps_ = 0;
};

}  // namespace yocobit
