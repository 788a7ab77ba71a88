#include "session.h"

#include <cstring>
#include <stdexcept>
#include <string>

#include "decoder.h"

namespace yocobit {

Session::Session(const PackedModel& model, int64_t max_tokens, FloatType cache_type)
    : model(model), max_tokens(max_tokens) {
  const ModelConfig& config = model.config;
  if (max_tokens < 1 || max_tokens > int64_t{1} << 40) {
    throw std::invalid_argument("max_tokens must be between 1 and 2^40 but is " +
                                std::to_string(max_tokens));
  }
  for (int i = 0; i < model.n_self_layers; ++i) {
    LayerState& state = layers.emplace_back();
    const int self_dim = config.self_head_dim(), dim = config.head_dim();
    if (config.layers[i] == Mixer::retention) {
      const size_t size = size_t{1} * config.d_model * self_dim;
      state.retention = make_buffer<float>(size);
      std::memset(state.retention.get(), 0, size * sizeof(float));
    } else if (config.layers[i] == Mixer::window) {
      state.kv.emplace(cache_type, config.n_self_kv_heads, self_dim,
                       int64_t{config.window} + Decoder::kMaxRows);
    } else {
      state.kv.emplace(cache_type, config.n_kv_heads, dim, max_tokens);
    }
  }
  if (model.has_cross_decoder()) {
    shared.emplace(cache_type, config.n_kv_heads, config.head_dim(), max_tokens);
  }
}

const KeyValueCache* Session::keys_values(int layer) const {
  if (layer >= static_cast<int>(layers.size())) return &*shared;
  return layers[layer].kv ? &*layers[layer].kv : nullptr;
}

SessionMemory Session::memory() const {
  SessionMemory memory = {};
  for (size_t i = 0; i < layers.size(); ++i) {
    if (layers[i].retention) {
      memory.retention += int64_t{4} * model.config.d_model * model.config.self_head_dim();
    }
    if (!layers[i].kv) continue;
    const KeyValueCache& kv = *layers[i].kv;
    const bool is_window = model.config.layers[i] == Mixer::window;
    (is_window ? memory.window : memory.full) += kv.capacity() * kv.bytes_per_position();
    if (!is_window) memory.full_per_token += kv.bytes_per_position();
  }
  if (shared) {
    memory.shared_kv_per_token = shared->bytes_per_position();
    memory.shared_kv = shared->capacity() * shared->bytes_per_position();
  }
  return memory;
}

}  // namespace yocobit
