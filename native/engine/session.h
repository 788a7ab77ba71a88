// Per-sequence state: KV caches and recurrent states.
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
  Buffer<float> recurrent;    // of retention: [H][D][D], key by value
  std::optional<KvCache> kv;  // the layer's own: a ring buffer or all positions
};

struct Bytes {
  const uint8_t* data;
  int64_t size;
};

struct Session {
  // Reserves memory for max_tokens positions; throws std::bad_alloc or std::invalid_argument.
  Session(const PackedModel& model, int64_t max_tokens, FloatType cache_type);

  SessionMemory memory() const;

  // The KV cache that a layer reads: its own, or the shared one from n_self_layers on; nullptr if
  // it reads none.
  KvCache* kv_cache(int layer);

  // Bytes of one position in the growing caches (those that keep all positions), and of the state
  // after `position` tokens: recurrent states and sliding windows.
  int64_t bytes_per_position() const;
  int64_t state_bytes(int64_t position) const;

  // Whether no recurrent state, cached value or scale is NaN or infinite.
  bool is_finite();

  // Copy positions [begin, end) of the growing caches, or the state after the last position.
  void copy_positions(int64_t begin, int64_t end, uint8_t* out);
  void copy_state(uint8_t* out);

  // Restore the session after tokens [n] from the output of copy_state, and of copy_positions over
  // [kept, n) in consecutive pieces. The first `kept` positions stay. Throws std::invalid_argument,
  // with nothing changed, if a size does not match or the session did not consume the first `kept`
  // tokens.
  void restore(const Kernels& kernels, const int32_t* tokens, int64_t n, Bytes state, int64_t kept,
               const std::vector<Bytes>& pieces);

  // Add positions [begin, end) of the shared KV cache to the block index, if there is one.
  void update_block_index(const Kernels& kernels, int64_t begin, int64_t end);

  const PackedModel& model;
  const int64_t max_tokens;
  int64_t position = 0;            // tokens consumed
  Buffer<int32_t> tokens;          // [max_tokens], the tokens consumed
  uint64_t last_step = 0;          // number of the last Engine::step with this session
  std::vector<LayerState> layers;  // of the self-decoder
  std::optional<KvCache> shared_kv;
  std::optional<BlockIndex> block_index;  // of shared_kv, if cross layers select blocks

 private:
  int64_t recurrent_bytes(int layer) const;
  template <typename Visit>
  void for_each_growing_cache(const Visit& visit);
  template <typename VisitRecurrent, typename VisitWindow>
  void for_each_state(int64_t position, const VisitRecurrent& visit_recurrent,
                      const VisitWindow& visit_window);
};

}  // namespace yocobit
