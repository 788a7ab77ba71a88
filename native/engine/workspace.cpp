#include "engine/workspace.h"

#include <algorithm>

#include "engine/block_index.h"

namespace yocobit {

template <typename T>
Buffer<T> Workspace::allocate(int64_t n) {
  size_bytes += n * static_cast<int64_t>(sizeof(T));
  return make_buffer<T>(n);
}

Workspace::Workspace(const PackedModel& model) {
  const ModelConfig& config = model.config;
  const int64_t N = kMaxBatchTokens, C = config.d_model, F = config.d_ff;
  // The most input features of a matrix with this encoding.
  int64_t int8_width = 0, int16_width = 0, grouped_width = 0, unquantised_width = 0;
  const auto width_of = [&](ActivationEncoding encoding) -> int64_t& {
    switch (encoding) {
      case ActivationEncoding::int8_per_token:
        return int8_width;
      case ActivationEncoding::int16_per_token:
        return int16_width;
      case ActivationEncoding::int8_per_group:
        return grouped_width;
      case ActivationEncoding::float32:
        break;
    }
    return unquantised_width;
  };
  model.for_each_linear([&](const Linear& linear) {
    if (&linear == &model.embedding) return;
    int64_t& width = width_of(linear.format->activations);
    width = std::max<int64_t>(width, linear.k);
  });
  int64_t width = C;  // of Q with padded heads, in the layer where it is largest
  for (const MixerSpec* mixer : config.layers) {
    if (!mixer->heads) continue;
    const Heads heads = (config.*mixer->heads)();
    width = std::max(width, int64_t{heads.n_heads} * heads.padded_dim());
  }
  stream = allocate<float>(N * C);
  normed = allocate<float>(N * std::max(width, F));
  int8_stride = static_cast<int>(round_up(int8_width, kSignBlock));
  int8_codes = allocate<int8_t>(N * int8_stride);
  int8_scales = allocate<float>(N);
  int8_sums = allocate<int32_t>(N);
  const int64_t int16_stride = round_up(int16_width, kInt4Block);
  int16_codes = allocate<int16_t>(N * int16_stride);
  int16_scales = allocate<float>(N);
  int16_sums = allocate<int32_t>(N * int16_stride / kInt4Block);
  const int64_t grouped_stride = round_up(grouped_width, kSignBlock);
  grouped_codes = allocate<int8_t>(N * config.activation_parts() * grouped_stride);
  grouped_scales = allocate<float>(N * grouped_stride / kActivationGroup);
  grouped_sums = allocate<int32_t>(N * grouped_stride / kActivationGroup);
  for (Buffer<float>* buffer : {&q, &k, &v, &g, &y}) *buffer = allocate<float>(N * width);
  decay = allocate<float>(N * config.n_self_heads);
  gate = allocate<float>(N * F);
  up = allocate<float>(N * F);
  int64_t partial_size = 0;  // of all query heads of a row, in the layer where it is largest
  for (const MixerSpec* mixer : config.layers) {
    if (mixer->reads_memory && !memory) memory = allocate<float>(N * C);
    if (mixer->kv_cache == KvCacheKind::none) continue;
    const Heads heads = (config.*mixer->heads)();
    partial_size =
        std::max(partial_size, int64_t{heads.n_heads} * (heads.padded_dim() + kPartialExtra));
  }
  partials = allocate<float>(kMaxPartials * partial_size);
}

void Workspace::reserve(const ModelConfig& config, int64_t max_tokens) {
  if (config.cross_attention != CrossAttention::index || selected) return;
  if (n_blocks(max_tokens - 1) <= config.cross_blocks()) return;  // all blocks are attended to
  const int64_t N = kMaxBatchTokens;
  selected = allocate<int32_t>(N * config.n_kv_heads * config.cross_blocks());
}

}  // namespace yocobit
