// Attention over KV caches, shared by the mixers that attend.
//
// A row's positions are split at fixed multiples of kKvSplit (flash-decoding). Threads attend over
// splits of all rows and heads; the partial results are combined in the order of their positions.
// So the result depends on neither the number of threads nor the composition of the batch.
//
// Letters:  N rows   H query heads   G KV heads   D head size
#pragma once

#include <cstdint>

#include "engine/forward_pass.h"

namespace yocobit {

constexpr int64_t kKvSplit = 512;     // positions
constexpr int kQueriesTogether = 32;  // that a kernel gets at most: they share tiles of positions

struct AttentionLayer {
  Heads heads;
  const RopeTable& rope;
  const float *q_norm = nullptr, *k_norm = nullptr;  // [D], or nullptr without qk_norm
  int cache;             // index of the layer that owns the KV cache; n_self_layers: the shared one
  int64_t window;        // positions that a row attends to, its own included; 0: all
  bool stores_kv;        // whether workspace.k and v hold the rows' K and V, to be cached first
  bool selects = false;  // whether this layer selects the blocks for itself and those after it
  bool is_sparse = false;  // whether rows with more than cross_blocks attend to selected ones
};

// Normalise and rotate the queries in workspace.q [N][H][D] and attend; outputs in workspace.y
// [N][H][D].
void attend(const ForwardPass& pass, const AttentionLayer& layer);

// Cache the shared K and V, in workspace.k and v [N][G][D], and update the block indices.
void store_shared_kv(const ForwardPass& pass, const AttentionLayer& layer);

}  // namespace yocobit
