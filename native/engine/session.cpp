#include "engine/session.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "engine/batch.h"

namespace yocobit {
namespace {

[[noreturn]] void refuse(const std::string& why) {
  throw std::invalid_argument("session: cannot be restored: " + why);
}

void check_restore(const Session& session, const int32_t* tokens, int64_t n, Bytes state,
                   int64_t kept, const std::vector<Bytes>& pieces) {
  const auto number = [](int64_t value) { return std::to_string(value); };
  if (n > session.max_tokens) {
    refuse("it has room for " + number(session.max_tokens) + " tokens but is given " + number(n));
  }
  for (int64_t i = 0; i < n; ++i) {
    if (tokens[i] < 0 || tokens[i] >= session.model.config.vocab_size) {
      refuse("token " + number(i) + " must be in the vocabulary of " +
             number(session.model.config.vocab_size) + " but is " + number(tokens[i]));
    }
  }
  if (kept < 0 || kept > std::min(n, session.position) ||
      !std::equal(tokens, tokens + kept, session.tokens.get())) {
    refuse("it does not hold the first " + number(kept) + " tokens");
  }
  if (state.size != session.state_bytes(n)) {
    refuse("the state after " + number(n) + " tokens has " + number(session.state_bytes(n)) +
           " bytes but is given " + number(state.size));
  }
  const int64_t size = session.bytes_per_position();
  int64_t total = 0;
  for (const Bytes& piece : pieces) {
    if (piece.size % std::max<int64_t>(1, size) != 0) {
      refuse("positions have " + number(size) + " bytes each but a piece has " +
             number(piece.size));
    }
    total += piece.size;
  }
  if (total != (n - kept) * size) {
    refuse(number(n - kept) + " positions have " + number((n - kept) * size) +
           " bytes but are given " + number(total));
  }
}

}  // namespace

Session::Session(const PackedModel& model, int64_t max_tokens, FloatType cache_type)
    : model(model), max_tokens(max_tokens) {
  const ModelConfig& config = model.config;
  if (max_tokens < 1 || max_tokens > int64_t{1} << 40) {
    throw std::invalid_argument("max_tokens must be between 1 and 2^40 but is " +
                                std::to_string(max_tokens));
  }
  tokens = make_buffer<int32_t>(max_tokens);
  for (int i = 0; i < model.n_self_layers; ++i) {
    const MixerSpec& mixer = *config.layers[i];
    LayerState& state = layers.emplace_back();
    if (mixer.state_values) {
      state.recurrent = make_buffer<float>(mixer.state_values(config));
      std::fill_n(state.recurrent.get(), mixer.state_values(config), 0.0f);
    }
    if (mixer.kv_cache == KvCacheKind::none) continue;
    const Heads heads = (config.*mixer.heads)();
    const int64_t n_positions =
        mixer.kv_cache == KvCacheKind::ring
            ? std::min(max_tokens, int64_t{config.window} + config.ffn->max_batch_tokens)
            : max_tokens;
    state.kv.emplace(cache_type, heads.n_kv_heads, heads.padded_dim(), n_positions);
  }
  if (model.has_cross_decoder()) {
    const Heads heads = config.heads();
    shared_kv.emplace(cache_type, heads.n_kv_heads, heads.head_dim, max_tokens);
    if (config.cross_attention == CrossAttention::index) block_index.emplace(config, max_tokens);
  }
}

int64_t Session::recurrent_bytes(int layer) const {
  const MixerSpec& mixer = *model.config.layers[layer];
  return mixer.state_values ? mixer.state_values(model.config) * int64_t{sizeof(float)} : 0;
}

KvCache* Session::kv_cache(int layer) {
  std::optional<KvCache>& kv =
      layer < static_cast<int>(layers.size()) ? layers[layer].kv : shared_kv;
  return kv ? &*kv : nullptr;
}

SessionMemory Session::memory() const {
  SessionMemory memory = {};
  for (size_t i = 0; i < layers.size(); ++i) {
    memory.retention += recurrent_bytes(static_cast<int>(i));
    if (!layers[i].kv) continue;
    const KvCache& kv = *layers[i].kv;
    const bool is_ring = model.config.layers[i]->kv_cache == KvCacheKind::ring;
    (is_ring ? memory.window : memory.full) += kv.capacity() * kv.bytes_per_position();
    if (!is_ring) memory.full_per_token += kv.bytes_per_position();
  }
  if (shared_kv) {
    memory.shared_kv_per_token = shared_kv->bytes_per_position();
    memory.shared_kv = shared_kv->capacity() * shared_kv->bytes_per_position();
  }
  if (block_index) memory.index = block_index->size_bytes();
  return memory;
}

int64_t Session::bytes_per_position() const {
  const SessionMemory sizes = memory();
  return sizes.shared_kv_per_token + sizes.full_per_token;
}

int64_t Session::state_bytes(int64_t position) const {
  int64_t bytes = 0;
  for (size_t i = 0; i < layers.size(); ++i) {
    bytes += recurrent_bytes(static_cast<int>(i));
    if (model.config.layers[i]->kv_cache == KvCacheKind::ring) {
      bytes +=
          std::min<int64_t>(position, model.config.window) * layers[i].kv->bytes_per_position();
    }
  }
  return bytes;
}

template <typename Visit>
void Session::for_each_growing_cache(const Visit& visit) {
  for (size_t i = 0; i < layers.size(); ++i) {
    if (model.config.layers[i]->kv_cache == KvCacheKind::per_token) visit(*layers[i].kv);
  }
  if (shared_kv) visit(*shared_kv);
}

// Visit recurrent states, and ring buffers with the first position in the window at `position`.
template <typename VisitRecurrent, typename VisitWindow>
void Session::for_each_state(int64_t position, const VisitRecurrent& visit_recurrent,
                             const VisitWindow& visit_window) {
  for (size_t i = 0; i < layers.size(); ++i) {
    if (layers[i].recurrent) {
      visit_recurrent(layers[i].recurrent.get(), recurrent_bytes(static_cast<int>(i)));
    }
    if (model.config.layers[i]->kv_cache != KvCacheKind::ring) continue;
    visit_window(*layers[i].kv, std::max<int64_t>(0, position - model.config.window));
  }
}

bool Session::is_finite() {
  bool result = true;
  for_each_state(
      position,
      [&](const float* state, int64_t bytes) {
        const int64_t n = bytes / int64_t{sizeof(float)};
        result = result && kFiniteF32.find_invalid(state, 0, n) == n;
      },
      [&](KvCache& cache, int64_t begin) { result = result && cache.is_finite(begin, position); });
  for_each_growing_cache([&](KvCache& cache) { result = result && cache.is_finite(0, position); });
  return result;
}

void Session::copy_positions(int64_t begin, int64_t end, uint8_t* out) {
  for_each_growing_cache([&](KvCache& cache) { out = cache.copy_out(begin, end, out); });
}

void Session::copy_state(uint8_t* out) {
  for_each_state(
      position,
      [&](const float* state, int64_t bytes) {
        std::memcpy(out, state, bytes);
        out += bytes;
      },
      [&](KvCache& cache, int64_t begin) { out = cache.copy_out(begin, position, out); });
}

void Session::update_block_index(const Kernels& kernels, int64_t begin, int64_t end) {
  if (!block_index) return;
  for (int head = 0; head < shared_kv->n_heads(); ++head) {
    block_index->update(kernels, *shared_kv, head, begin, end);
  }
}

void Session::restore(const Kernels& kernels, const int32_t* new_tokens, int64_t n, Bytes state,
                      int64_t kept, const std::vector<Bytes>& pieces) {
  check_restore(*this, new_tokens, n, state, kept, pieces);
  std::copy_n(new_tokens, n, tokens.get());
  for_each_state(
      n,
      [&](float* memory, int64_t bytes) {
        std::memcpy(memory, state.data, bytes);
        state.data += bytes;
      },
      [&](KvCache& cache, int64_t begin) { state.data = cache.copy_in(begin, n, state.data); });
  int64_t begin = kept;
  for (const Bytes& piece : pieces) {
    const uint8_t* from = piece.data;
    const int64_t end =
        std::min(n, begin + piece.size / std::max<int64_t>(1, bytes_per_position()));
    for_each_growing_cache([&](KvCache& cache) { from = cache.copy_in(begin, end, from); });
    begin = end;
  }
  update_block_index(kernels, kept, n);
  position = n;
}

}  // namespace yocobit
