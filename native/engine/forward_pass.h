// The context of one forward pass: model, kernels, batch and workspace. Nothing else carries state
// from one layer to the next.
//
// Letters:  N rows   M output features   K input features
#pragma once

#include <algorithm>
#include <initializer_list>

#include "engine/batch.h"
#include "engine/rope.h"
#include "engine/workspace.h"
#include "kernels/kernels.h"
#include "model/packed_model.h"
#include "runtime/thread_pool.h"

namespace yocobit {

// One of several matrices with the same input, and its output.
struct LinearOutput {
  const Linear* linear;
  float* y;  // [N][M]
};

using LinearOutputs = std::initializer_list<LinearOutput>;

struct ForwardPass {
  const PackedModel& model;
  const Kernels& kernels;
  ThreadPool& pool;
  const Batch& batch;
  const RopeTables& ropes;
  Workspace& workspace;

  // y = W x of all outputs, where x [N][K] is first RMS-normalised if norm [K] is given. Returns x
  // normalised and quantised, valid until the next call.
  Activations project(const float* x, const float* norm, LinearOutputs outputs) const;

  // The same for outputs with the same M, with a fused epilogue: each thread calls
  // finish(row_begin, row_end, feature_begin, feature_end) for the rows and features that it
  // computed of all outputs.
  template <typename Finish>
  void project(const float* x, const float* norm, LinearOutputs outputs,
               const Finish& finish) const;

  // stream += W x, where x is first RMS-normalised if norm is given.
  void add_to_stream(const Linear& linear, const float* x, const float* norm) const;

 private:
  Activations encode(const float* x, const float* norm, LinearOutputs outputs) const;
  bool splits_rows(LinearOutputs outputs) const;
  template <typename Finish>
  void apply_by_rows(const Activations& x, LinearOutputs outputs, const Finish& finish) const;
};

template <typename Finish>
void ForwardPass::project(const float* x, const float* norm, LinearOutputs outputs,
                          const Finish& finish) const {
  const Activations input = encode(x, norm, outputs);
  const Linear& first = *outputs.begin()->linear;
  if (splits_rows(outputs)) {
    apply_by_rows(input, outputs,
                  [&](int row_begin, int row_end) { finish(row_begin, row_end, 0, first.m); });
    return;
  }
  pool.parallel_for(first.n_groups(), [&](int64_t begin, int64_t end) {
    const int group_begin = static_cast<int>(begin), group_end = static_cast<int>(end);
    for (const auto& [linear, y] : outputs) {
      linear->apply(kernels, input, group_begin, group_end, y, linear->m);
    }
    finish(0, batch.size(), group_begin * kRowsPerGroup,
           std::min(group_end * kRowsPerGroup, first.m));
  });
}

// Each thread computes all output features of blocks of rows, then calls finish for those rows.
template <typename Finish>
void ForwardPass::apply_by_rows(const Activations& x, LinearOutputs outputs,
                                const Finish& finish) const {
  pool.parallel_for((x.n + kTokenBlock - 1) / kTokenBlock, [&](int64_t begin, int64_t end) {
    const int row_begin = static_cast<int>(begin) * kTokenBlock;
    const int row_end = std::min(static_cast<int>(end) * kTokenBlock, x.n);
    for (const auto& [linear, y] : outputs) {
      linear->apply(kernels, x.rows(row_begin, row_end), 0, linear->n_groups(),
                    y + static_cast<ptrdiff_t>(row_begin) * linear->m, linear->m);
    }
    finish(row_begin, row_end);
  });
}

}  // namespace yocobit
