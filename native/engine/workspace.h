// The buffers of a forward pass, allocated with a model and its sessions: a decode step allocates
// nothing.
//
// Letters:  N rows, up to FeedForwardSpec::max_batch_tokens   C model width
//           F feed-forward width   E experts
//           R routed rows: pairs of a row and one of its experts, sorted by expert
//           H query heads   G KV heads   D head size   K input features of a matrix
#pragma once

#include <cstdint>

#include "engine/batch.h"
#include "model/packed_model.h"
#include "runtime/buffer.h"

namespace yocobit {

// Partial attention results that are kept at a time for each row and query head of a full batch: of
// that number of KV splits. With fewer rows there is room for more.
constexpr int64_t kPartialsPerRow = 2;

// The routed rows [begin, end) of an expert.
struct ExpertRows {
  int32_t expert, begin, end;
};

struct Workspace {
  explicit Workspace(const PackedModel& model);

  // Allocate the buffers that sessions of that capacity need.
  void reserve(const ModelConfig& config, int64_t max_tokens);

  int64_t size_bytes = 0;

  Buffer<float> stream;  // [N][C], the residual stream
  // The inputs of matmuls. Of experts: N rows, then R routed rows.
  Buffer<float> normed;          // [N][max(C, F, H D)], after RMSNorm
  Buffer<int8_t> int8_codes;     // [N][K rounded up to 256], as int8
  Buffer<float> int8_scales;     // [N]
  Buffer<int32_t> int8_sums;     // [N]
  Buffer<int16_t> int16_codes;   // [N][K rounded up to 64], as int16
  Buffer<float> int16_scales;    // [N]
  Buffer<int32_t> int16_sums;    // [N][K rounded up to 64, / 64]
  Buffer<int8_t> grouped_codes;  // [N][parts][K rounded up to 256], of int8_per_group
  Buffer<float> grouped_scales;  // [N][K rounded up to 256, / 32]
  Buffer<int32_t> grouped_sums;  // likewise

  Buffer<float> q;           // [N][H D]; or [N][C], an output that is added to the stream
  Buffer<float> k, v;        // [N][G D]
  Buffer<float> g;           // [N][C]; or [N][H][D rounded up to 8], queries
  Buffer<float> y;           // [N][H D], a mixer's output before gate and output projection
  Buffer<float> memory;      // [N][C], y of the last self-decoder mixer, if a layer reads it
  Buffer<float> decay;       // [H][N]
  Buffer<float> gate, up;    // [N][F], or [R][F] of experts
  Buffer<float> partials;    // [N][H][kPartialsPerRow][D rounded up to 8, + kPartialExtra]
  Buffer<int32_t> selected;  // [N][G][cross_blocks], if cross layers select blocks

  // Of an FFN with experts.
  Buffer<float> router_logits;        // [N][E]
  Buffer<int32_t> selected_experts;   // [N][R / N], by descending logit
  Buffer<float> expert_weights;       // [N][weights_stride], likewise
  Buffer<int32_t> next_rows;          // [E], while rows are sorted
  Buffer<ExpertRows> active_experts;  // [min(E, R)]
  Buffer<int32_t> routed_rows;        // [N][R / N], of the selected experts
  Buffer<int32_t> routed_tokens;      // [R], the row of each routed row
  Buffer<float> expert_outputs;       // [R][C]
  int weights_stride = 0;             // R / N rounded up to 8

 private:
  template <typename T>
  Buffer<T> allocate(int64_t n);
};

}  // namespace yocobit
