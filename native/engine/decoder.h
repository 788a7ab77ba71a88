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

class Decoder {
 public:
  Decoder(const PackedModel& model, const Kernels& kernels, ThreadPool& pool);

  // Consume the rows of a batch into their sessions' KV caches and states; write the logits
  // [n_logits][V] of its last n_logits rows. The cross-decoder runs for those rows only (early
  // exit), and `batch` is left with them.
  void forward(Batch& batch, Workspace& workspace, int n_logits, float* logits);

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
