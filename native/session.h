// One text being read or written: its caches, its work buffers, and the forward pass.
//
// Logits are a pure function of model and tokens. Every value is computed by one thread in one
// order; threads, chunks and early exit only decide who computes what, and whether.
//
// Letters:  N tokens of a chunk   C model width   F feed-forward width   V vocabulary   D head size
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include "cache.h"
#include "kernels.h"
#include "packed_model.h"
#include "thread_pool.h"

namespace yocobit {

// What sessions of one model share. Sessions may be used from several threads; they take turns.
struct Engine {
  PackedModel model;
  const Kernels& kernels;
  ThreadPool pool;
  std::mutex mutex;
};

enum class Logits { none, last, all };

struct SessionMemory {
  int64_t shared_kv, window, full, retention, buffers;  // bytes reserved
  int64_t shared_kv_per_token, full_per_token;          // bytes that one more token needs
};

class Session {
 public:
  // Room for max_tokens positions; throws std::bad_alloc or std::invalid_argument.
  Session(Engine& engine, int64_t max_tokens, FloatType cache_type);

  // Take in tokens[n]; write the logits asked for, [V] or [n][V]. Throws std::invalid_argument,
  // with nothing changed, for a token outside the vocabulary or more tokens than there is room.
  void feed(const int32_t* tokens, int64_t n, Logits which, float* logits);

  const Engine& engine() const { return engine_; }
  int64_t position() const { return position_; }
  int64_t max_tokens() const { return max_tokens_; }
  SessionMemory memory() const;

  // The parts of the state, for tests and tools: nullptr where the layer has none.
  const float* retention_state(int layer) const { return states_[layer].retention.get(); }
  const KeyValueCache* keys_values(int layer) const;  // of a cross layer: the shared one

 private:
  static constexpr int kChunk = 64;

  struct LayerState {
    Buffer<float> retention;  // [H][D][D], key by value
    std::optional<KeyValueCache> kv;
  };

  struct Rotation {  // of the tokens of a chunk
    RopeKind kind;
    int head_dim;
    std::vector<double> frequencies;  // [D / 2]
    std::vector<float> cosine, sine;  // [N][D / 2]
  };

  void embed(const int32_t* tokens);
  void self_decode(const int32_t* tokens, int n);
  void cross_decode();
  void write_logits(float* logits);
  void feed_forward(const Layer& layer);
  void retain(const Layer& layer, LayerState& state);
  void self_attend(const Layer& layer, KeyValueCache& cache, const Rotation& rotation, int n_heads,
                   int window);
  void cross_attend(const Layer& layer);
  void store_keys_values(KeyValueCache& cache, const Rotation& rotation);
  void attend(const KeyValueCache& cache, const Rotation& rotation, int n_heads, int window);
  void project_out(const Linear& linear, float* x, const float* norm);

  Rotation make_rotation(RopeKind kind, int head_dim) const;
  void turn(Rotation& rotation) const;
  void rotate(const Rotation& rotation, int token, float* head) const;
  void prepare(const float* x, int size, const float* norm);
  void prepare_row(const float* x, int size, const float* norm, int token);
  void apply(const Linear& linear, float* y);

  Engine& engine_;
  const PackedModel& model_;
  const Kernels& kernels_;
  int64_t max_tokens_, position_ = 0;
  FloatType cache_type_;
  std::vector<LayerState> states_;
  std::optional<KeyValueCache> shared_;
  Rotation retention_rotation_, window_rotation_, full_rotation_, cross_rotation_;

  // The chunk at work: n_ tokens from position first_, their residual stream at x_.
  int n_ = 0;
  int64_t first_ = 0;
  float* x_;
  Buffer<float> stream_;       // [N][C]
  Buffer<float> normed_;       // [N][max(C, F)], input of projections
  Buffer<int8_t> codes_;       // [N][stride], the same in int8
  Buffer<float> code_scales_;  // [N]
  Buffer<int32_t> code_sums_;  // [N]
  QuantizedRows quantized_ = {};
  Buffer<float> q_, k_, v_, g_, y_;  // [N][C] at most; k and v [N][G * D]
  Buffer<float> decay_;              // [N][H]
  Buffer<float> gate_, up_;          // [N][F]
};

}  // namespace yocobit
