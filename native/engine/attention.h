// Attention over KV caches, shared by the mixers that attend.
//
// A row's positions are split at fixed multiples of kKvSplit (flash-decoding). Threads attend over
// splits of all rows and heads; the partial results are combined in the order of their positions.
// So the result depends on the positions only, not on threads or on the batch's composition.
//
// Letters:  N rows   H query heads   G KV heads   D head size
#pragma once

#include <cstdint>

#include "engine/forward_pass.h"

namespace yocobit {

constexpr int64_t kKvSplit = 512;  // positions

struct AttentionLayer {
  Heads heads;
  const RopeTable& rope;
  int cache;             // index of the layer that owns the KV cache; n_self_layers: the shared one
  int64_t window;        // positions that a row sees, its own included; 0: all
  bool stores_kv;        // whether workspace.k and v hold the rows' K and V, to be cached first
  bool selects = false;  // whether this layer selects the blocks for itself and those after it
  bool is_sparse = false;  // whether rows attend to selected blocks only, where there are more
};

// Queries in workspace.q [N][H][D], rotated here, to outputs in workspace.y [N][H][D].
void attend(const ForwardPass& pass, const AttentionLayer& layer);

// Cache the shared K and V, in workspace.k and v [N][G][D], and update the block indices.
void store_shared_kv(const ForwardPass& pass, const AttentionLayer& layer);

}  // namespace yocobit
