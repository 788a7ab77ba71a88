// The forward pass of a decoder-decoder model over a batch of tokens.
//
// Logits are a pure function of model and tokens. Every value is computed by one thread in one
// order; threads, batch composition and early exit only decide who computes what, and whether.
//
// Letters:  N rows   C model width   V vocabulary
#pragma once

#include "engine/batch.h"
#include "engine/rope.h"
#include "engine/workspace.h"
#include "kernels/kernels.h"
#include "model/packed_model.h"
#include "runtime/thread_pool.h"

namespace yocobit {

struct ForwardPass;

// What a row of the forward pass returns: logits [V], or the hidden state [C] after the final norm.
enum class Output { logits, hidden_state };

class Decoder {
 public:
  Decoder(const PackedModel& model, const Kernels& kernels, ThreadPool& pool);

  // Consume the rows of a batch into their sessions' KV caches and states; write the outputs
  // [n_outputs][V or C] of its last n_outputs rows. The cross-decoder runs for those rows only
  // (early exit), and `batch` is left with them.
  void forward(Batch& batch, Workspace& workspace, int n_outputs, Output output, float* out);

 private:
  void self_decode(const ForwardPass& pass) const;
  void keep_last(Batch& batch, Workspace& workspace, int n);
  void cross_decode(const ForwardPass& pass) const;

  const PackedModel& model_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  RopeTables ropes_;
};

}  // namespace yocobit
