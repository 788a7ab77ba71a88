#include "engine/workspace.h"

#include <algorithm>

#include "engine/block_index.h"

namespace yocobit {

template <typename T>
Buffer<T> Workspace::allocate(int64_t n) {
  size_bytes += n * static_cast<int64_t>(sizeof(T));
  return make_buffer<T>(n);
}

namespace {

// The largest input of any matrix with an encoding: its rows, and the values of all its rows.
struct InputSize {
  int64_t rows = 0, values = 0;

  void include(int64_t n_rows, int64_t row_size) {
    rows = std::max(rows, n_rows);
    values = std::max(values, n_rows * row_size);
  }
};

struct InputSizes {
  InputSize float32, int8, int16, grouped;

  void include(const Linear& linear, int64_t n_rows) {
    switch (linear.format->activations) {
      case ActivationEncoding::float32:
        return float32.include(n_rows, linear.k);
      case ActivationEncoding::int8_per_token:
        return int8.include(n_rows, round_up(linear.k, kSignBlock));
      case ActivationEncoding::int16_per_token:
        return int16.include(n_rows, round_up(linear.k, kInt4Block));
      case ActivationEncoding::int8_per_group:
        return grouped.include(n_rows, round_up(linear.k, kSignBlock));
    }
  }
};

}  // namespace

Workspace::Workspace(const PackedModel& model) {
  const ModelConfig& config = model.config;
  const int64_t N = config.ffn->max_batch_tokens, C = config.d_model, F = config.d_ff;
  const int64_t R = N * config.n_active_experts;
  int64_t width = C;  // of Q with padded heads, in the layer where it is largest
  for (const MixerSpec* mixer : config.layers) {
    if (!mixer->heads) continue;
    const Heads heads = (config.*mixer->heads)();
    width = std::max(width, int64_t{heads.n_heads} * heads.padded_dim());
  }
  InputSizes inputs;
  inputs.float32.include(N, std::max(width, F));
  model.for_each_linear([&](const Linear& linear) {
    if (&linear != &model.embedding) inputs.include(linear, N);
  });
  for (const Layer& layer : model.layers) {
    if (!config.ffn->has_experts) break;
    inputs.include(layer.ffn_gate, N + R);
    inputs.include(layer.ffn_up, N + R);
    inputs.include(layer.ffn_down, R);
    if (layer.ffn_sub_norm) inputs.float32.include(R, F);
  }
  stream = allocate<float>(N * C);
  normed = allocate<float>(inputs.float32.values);
  int8_codes = allocate<int8_t>(inputs.int8.values);
  int8_scales = allocate<float>(inputs.int8.rows);
  int8_sums = allocate<int32_t>(inputs.int8.rows);
  int16_codes = allocate<int16_t>(inputs.int16.values);
  int16_scales = allocate<float>(inputs.int16.rows);
  int16_sums = allocate<int32_t>(inputs.int16.values / kInt4Block);
  grouped_codes = allocate<int8_t>(inputs.grouped.values * config.activation_parts());
  grouped_scales = allocate<float>(inputs.grouped.values / kActivationGroup);
  grouped_sums = allocate<int32_t>(inputs.grouped.values / kActivationGroup);
  for (Buffer<float>* buffer : {&q, &k, &v, &g, &y}) *buffer = allocate<float>(N * width);
  decay = allocate<float>(N * config.n_self_heads);
  gate = allocate<float>(std::max(N, R) * F);
  up = allocate<float>(std::max(N, R) * F);
  if (config.ffn->has_experts) {
    const int64_t E = config.n_experts;
    router_logits = allocate<float>(N * E);
    selected_experts = allocate<int32_t>(R);
    weights_stride = static_cast<int>(round_up(config.n_active_experts, kLanes));
    expert_weights = allocate<float>(N * weights_stride);
    next_rows = allocate<int32_t>(E);
    active_experts = allocate<ExpertRows>(std::min(E, R));
    routed_rows = allocate<int32_t>(R);
    routed_tokens = allocate<int32_t>(R);
    expert_outputs = allocate<float>(R * C);
  }
  int64_t partial_size = 0;  // of all query heads of a row, in the layer where it is largest
  for (const MixerSpec* mixer : config.layers) {
    if (mixer->reads_memory && !memory) memory = allocate<float>(N * C);
    if (mixer->kv_cache == KvCacheKind::none) continue;
    const Heads heads = (config.*mixer->heads)();
    partial_size =
        std::max(partial_size, int64_t{heads.n_heads} * (heads.padded_dim() + kPartialExtra));
  }
  partials = allocate<float>(kPartialsPerRow * N * partial_size);
}

void Workspace::reserve(const ModelConfig& config, int64_t max_tokens) {
  if (config.cross_attention != CrossAttention::index || selected) return;
  if (n_blocks(max_tokens - 1) <= config.cross_blocks()) return;  // all blocks are attended to
  const int64_t N = config.ffn->max_batch_tokens;
  selected = allocate<int32_t>(N * config.n_kv_heads * config.cross_blocks());
}

}  // namespace yocobit
