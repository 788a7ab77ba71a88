// A packed model, the threads and the buffers that its sessions share. Calls from several threads
// are serialised: one batch, of at most max_batch_tokens(), at a time.
//
// Between batches a call with many tokens runs its `checkpoint` without the engine's lock. If that
// throws, the sessions hold the tokens of the batches before it and remain usable. In a child
// process after fork() an engine continues with threads of its own.
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
#include "runtime/fork.h"
#include "runtime/thread_pool.h"

namespace yocobit {

enum class Logits { none, last, all };

// A part of a prompt that a step prefills without logits.
struct PrefillChunk {
  Session* session;
  const int32_t* tokens;
  int64_t n;
};

using Checkpoint = void (*)();
inline void no_checkpoint() {}

class Engine {
 public:
  Engine(const std::string& path, const ModelConfig& config, const TensorEntries& tensors,
         const KernelFamily& kernels, int n_threads);

  const PackedModel& model() const { return model_; }
  const KernelFamily& kernels() const { return kernels_; }
  int n_threads() const { return pool_.size(); }
  int64_t buffer_bytes() const { return workspace_.size_bytes; }

  // Allocate the buffers that sessions of that capacity need.
  void reserve(int64_t max_tokens);

  // Return a line for each tensor that holds invalid values, with the first of them: one pass over
  // the file.
  std::vector<std::string> find_problems(Checkpoint checkpoint = no_checkpoint);

  // Consume tokens [n]; write the requested logits, [V] or [n][V]. Throws std::invalid_argument,
  // with nothing changed, for a token outside the vocabulary or more tokens than the session has
  // room for; FileChangedError, likewise, for the first tokens of a session if the model file was
  // changed in place.
  void feed(Session& session, const int32_t* tokens, int64_t n, Logits which, float* logits,
            Checkpoint checkpoint = no_checkpoint);

  // The same, but write the hidden states [n][C] after the final norm in place of logits.
  void hidden_states(Session& session, const int32_t* tokens, int64_t n, float* hidden,
                     Checkpoint checkpoint = no_checkpoint);

  // Decode one token in each of n sessions and prefill chunks in others; all sessions must differ.
  // Write the logits [n][V] of the decoded tokens. Results equal those of feed(), bit for bit, but
  // weights are read once for up to max_batch_tokens(). Throws as feed() does.
  void step(const std::vector<PrefillChunk>& chunks, Session* const* sessions,
            const int32_t* tokens, int n, float* logits, Checkpoint checkpoint = no_checkpoint);

  // As in Session, serialised with other calls; std::invalid_argument for a wrong `size`.
  void copy_state(Session& session, uint8_t* out, int64_t size);
  void copy_positions(Session& session, int64_t begin, int64_t end, uint8_t* out, int64_t size);
  void restore(Session& session, const int32_t* tokens, int64_t n, Bytes state, int64_t kept,
               const std::vector<Bytes>& pieces);

 private:
  int max_batch_tokens() const { return model_.config.ffn->max_batch_tokens; }
  void check_own(const Session& session) const;
  void check(const Session& session, const int32_t* tokens, int64_t n) const;
  void enter_step(Session& session);
  std::unique_lock<ForkSafeMutex> enter();
  void consume(Session& session, const int32_t* tokens, int64_t n, int64_t n_outputs, Output output,
               float* out, Checkpoint checkpoint);
  void append_rows(Session& session, const int32_t* tokens, int64_t n);
  void run_batch(int n_outputs, Output output, float* out);

  PackedModel model_;
  const KernelFamily& kernels_;
  ThreadPool pool_;
  Decoder decoder_;
  Workspace workspace_;
  Batch batch_;
  std::vector<BatchRow> rows_;  // of the current batch
  ForkSafeMutex mutex_;
  uint64_t n_steps_ = 0;
};

}  // namespace yocobit
