// One text being read or written: what its positions leave for later ones.
//
// Letters:  H heads   D head size
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cache.h"
#include "packed_model.h"

namespace yocobit {

struct SessionMemory {
  int64_t shared_kv, window, full, retention;   // bytes reserved
  int64_t shared_kv_per_token, full_per_token;  // bytes that one more token needs
};

struct LayerState {
  Buffer<float> retention;          // [H][D][D], key by value
  std::optional<KeyValueCache> kv;  // window and full attention
};

struct Session {
  // Room for max_tokens positions; throws std::bad_alloc or std::invalid_argument.
  Session(const PackedModel& model, int64_t max_tokens, FloatType cache_type);

  SessionMemory memory() const;

  // The caches that cross layers share and others own; nullptr where the layer has none.
  const KeyValueCache* keys_values(int layer) const;

  const PackedModel& model;
  const int64_t max_tokens;
  int64_t position = 0;            // tokens taken in
  uint64_t last_step = 0;          // of the engine, counted from 1, that the session was in
  std::vector<LayerState> layers;  // of the self-decoder
  std::optional<KeyValueCache> shared;
};

}  // namespace yocobit
