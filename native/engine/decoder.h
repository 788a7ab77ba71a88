// The forward pass of a decoder-decoder model over a batch of tokens.
//
// Logits are a pure function of model, cache type and tokens. Every value is computed by one thread
// in one order. The number of threads, batch composition and early exit only decide which thread
// computes a value, and whether it is computed at all.
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

// The output of a row: logits [V], or the hidden state [C] after the final norm.
enum class Output { logits, hidden_state };

class Decoder {
 public:
  Decoder(const PackedModel& model, const Kernels& kernels, ThreadPool& pool);

  // Run a batch and update the KV caches and states of its sessions; write the outputs
  // [n_outputs][V or C] of its last n_outputs rows. The cross-decoder runs for those rows only
  // (early exit); afterwards `batch` holds no others.
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
