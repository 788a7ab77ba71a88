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

// The encodings that matrices with the same input read.
struct ActivationEncodings {
  explicit ActivationEncodings(LinearOutputs outputs);

  bool float32 = false, int8_per_token = false, int16_per_token = false, int8_per_group = false;
};

struct ForwardPass {
  const PackedModel& model;
  const Kernels& kernels;
  ThreadPool& pool;
  const Batch& batch;
  const RopeTables& ropes;
  Workspace& workspace;

  // y = W x of all outputs, where x [N][K] is first RMS-normalised if norm [K] is given, and again
  // for each matrix that has a norm of its own. Returns the normalised and quantised input of the
  // last output, valid until the next call.
  Activations project(const float* x, const float* norm, LinearOutputs outputs) const;

  // The same for outputs with the same M, with a fused epilogue: each thread calls
  // finish(row_begin, row_end, feature_begin, feature_end) for the rows and features that it
  // computed of all outputs.
  template <typename Finish>
  void project(const float* x, const float* norm, LinearOutputs outputs,
               const Finish& finish) const;

  // stream += residual_scale * RMSNorm(W x), where x is first RMS-normalised if norm is given, and
  // W x is not normalised if post_norm [C] is nullptr.
  void add_to_stream(const Linear& linear, const float* x, const float* norm,
                     const float* post_norm) const;

  // The same with an epilogue: finish, as above, updates its part of y = W x [N][C].
  template <typename Finish>
  void project_to_stream(const Linear& linear, const float* x, const float* norm, float* y,
                         const Finish& finish, const float* post_norm) const;

  // Encode n rows x for the weight formats of the outputs, after RMSNorm with `norm` and then with
  // the norm of the first output, where they exist.
  Activations encode(const float* x, int n, const float* norm, LinearOutputs outputs) const;

  // Copy encoded row `from` of x, which has a norm, to row `to` of its buffers.
  void copy_encoded(const Activations& x, LinearOutputs outputs, int from, int to) const;

  // stream += residual_scale * y [N][C] for those rows and features.
  void add_part(int row_begin, int row_end, int begin, int end, float* y) const;

  // stream += residual_scale * RMSNorm(y [N][C]).
  void add_normed(const float* post_norm, float* y) const;

 private:
  void quantize_row(const float* x, int K, int64_t row, const ActivationEncodings& encodings) const;
  bool splits_rows(LinearOutputs outputs) const;
  template <typename Finish>
  void apply_by_rows(const Activations& x, LinearOutputs outputs, const Finish& finish) const;
};

// Whether each of several matrices has a norm, and so an input, of its own.
inline bool have_own_inputs(LinearOutputs outputs) {
  return outputs.size() > 1 && outputs.begin()->linear->norm;
}

template <typename Finish>
void ForwardPass::project(const float* x, const float* norm, LinearOutputs outputs,
                          const Finish& finish) const {
  if (have_own_inputs(outputs)) {
    const LinearOutput* last = outputs.end() - 1;
    for (const LinearOutput* output = outputs.begin(); output != last; ++output) {
      project(x, norm, {*output});
    }
    return project(x, norm, {*last}, finish);
  }
  const Activations input = encode(x, batch.size(), norm, outputs);
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

template <typename Finish>
void ForwardPass::project_to_stream(const Linear& linear, const float* x, const float* norm,
                                    float* y, const Finish& finish, const float* post_norm) const {
  project(x, norm, {{&linear, y}}, [&](int row_begin, int row_end, int begin, int end) {
    finish(row_begin, row_end, begin, end);
    if (!post_norm) add_part(row_begin, row_end, begin, end, y);
  });
  if (post_norm) add_normed(post_norm, y);
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
