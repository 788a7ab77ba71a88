// One text being read or written: what its positions leave for later ones.
//
// Letters:  H heads   D head size
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "engine/block_index.h"
#include "engine/kv_cache.h"
#include "model/packed_model.h"

namespace yocobit {

struct SessionMemory {
  int64_t shared_kv, window, full, retention, index;  // bytes reserved
  int64_t shared_kv_per_token, full_per_token;        // bytes that one more token needs
};

struct LayerState {
  Buffer<float> retention;          // [H][D][D], key by value
  std::optional<KeyValueCache> kv;  // window and full attention
};

struct Bytes {
  const uint8_t* data;
  int64_t size;
};

struct Session {
  // Room for max_tokens positions; throws std::bad_alloc or std::invalid_argument.
  Session(const PackedModel& model, int64_t max_tokens, FloatType cache_type);

  SessionMemory memory() const;

  // The caches that cross layers share and others own; nullptr where the layer has none.
  const KeyValueCache* keys_values(int layer) const;

  // Bytes of what a position leaves in caches that grow, and of all else after so many positions:
  // retention states and windows.
  int64_t bytes_per_position() const;
  int64_t state_bytes(int64_t position) const;

  // Copy what positions [begin, end) left in the caches that grow, or the state after the last one.
  void copy_positions(int64_t begin, int64_t end, uint8_t* out);
  void copy_state(uint8_t* out);

  // Become what tokens [n] leave: the state after them, and in the caches that grow the pieces for
  // positions [kept, n), one after the other. What is there for the first `kept` tokens stays.
  // Throws std::invalid_argument, with nothing changed, if a size does not fit or the session does
  // not hold those first tokens.
  void restore(const Kernels& kernels, const int32_t* tokens, int64_t n, Bytes state, int64_t kept,
               const std::vector<Bytes>& pieces);

  // Take in positions [begin, end) of the shared cache, whose keys are there.
  void index(const Kernels& kernels, int64_t begin, int64_t end);

  const PackedModel& model;
  const int64_t max_tokens;
  int64_t position = 0;            // tokens taken in
  Buffer<int32_t> tokens;          // [max_tokens], those
  uint64_t last_step = 0;          // of the engine, counted from 1, that the session was in
  std::vector<LayerState> layers;  // of the self-decoder
  std::optional<KeyValueCache> shared;
  std::optional<BlockIndex> blocks;  // of the shared cache, if tokens attend to the best of them

 private:
  template <typename Visit>
  void for_each_growing(const Visit& visit);
  template <typename VisitRetention, typename VisitWindow>
  void for_each_state(int64_t position, const VisitRetention& visit_retention,
                      const VisitWindow& visit_window);
};

}  // namespace yocobit
