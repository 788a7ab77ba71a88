// The table of mixers. Each forward pass is in its own file.

#include "model/mixer_spec.h"
#include "model/packed_model.h"

namespace yocobit {

void forward_retention(const ForwardPass& pass, const Layer& layer, int index);
void forward_window(const ForwardPass& pass, const Layer& layer, int index);
void forward_full(const ForwardPass& pass, const Layer& layer, int index);
void forward_cross(const ForwardPass& pass, const Layer& layer, int index);
void forward_gmu(const ForwardPass& pass, const Layer& layer, int index);
void forward_gate(const ForwardPass& pass, const Layer& layer, int index);

namespace {

int model_width(const ModelConfig& config) { return config.d_model; }
int width(const ModelConfig& config) { return config.heads().width(); }
int kv_width(const ModelConfig& config) { return config.heads().kv_width(); }
int self_width(const ModelConfig& config) { return config.self_heads().width(); }
int self_kv_width(const ModelConfig& config) { return config.self_heads().kv_width(); }
int n_self_heads(const ModelConfig& config) { return config.n_self_heads; }

int64_t retention_state_values(const ModelConfig& config) {  // [H][D][D]
  const Heads heads = config.retention_heads();
  return int64_t{heads.n_heads} * heads.head_dim * heads.head_dim;
}

using Width = int (*)(const ModelConfig& config);

// A matrix from the model's width, or to it.
constexpr MixerParameter input(const char* name, Linear Layer::* linear, Width rows = model_width) {
  return {.name = name, .linear = linear, .rows = rows, .columns = model_width};
}
constexpr MixerParameter with_bias(const char* name, Linear Layer::* linear, Width rows) {
  return {.name = name, .linear = linear, .rows = rows, .columns = model_width, .has_bias = true};
}
constexpr MixerParameter output(Width columns = model_width) {
  return {.name = "out_proj", .linear = &Layer::out, .rows = model_width, .columns = columns};
}

constexpr MixerParameter kRetention[] = {input("q_proj", &Layer::q),
                                         input("k_proj", &Layer::k),
                                         input("v_proj", &Layer::v),
                                         input("g_proj", &Layer::g),
                                         {.name = "decay_proj",
                                          .linear = &Layer::decay,
                                          .rows = n_self_heads,
                                          .columns = model_width,
                                          .is_float32 = true},
                                         output()};
constexpr MixerParameter kWindow[] = {
    with_bias("q_proj", &Layer::q, self_width), with_bias("k_proj", &Layer::k, self_kv_width),
    with_bias("v_proj", &Layer::v, self_kv_width), output(self_width)};
constexpr MixerParameter kFull[] = {with_bias("q_proj", &Layer::q, width),
                                    with_bias("k_proj", &Layer::k, kv_width),
                                    with_bias("v_proj", &Layer::v, kv_width), output(width)};
constexpr MixerParameter kCross[] = {input("q_proj", &Layer::q), output()};
constexpr MixerParameter kGmu[] = {input("g_proj", &Layer::g), output()};
constexpr MixerParameter kGateOnly[] = {input("gate_proj", &Layer::g)};

constexpr MixerSpec kMixers[] = {
    {.name = "retention",
     .is_cross_decoder = false,
     .parameters = kRetention,
     .has_sub_norm = true,
     .heads = &ModelConfig::retention_heads,
     .rope = &ModelConfig::retention_rope,
     .state_values = retention_state_values,
     .forward = forward_retention},
    {.name = "window",
     .is_cross_decoder = false,
     .parameters = kWindow,
     .has_sub_norm = true,
     .heads = &ModelConfig::self_heads,
     .rope = &ModelConfig::window_rope,
     .rope_frequencies = &ModelConfig::window_rope_frequencies,
     .kv_cache = KvCacheKind::ring,
     .forward = forward_window},
    {.name = "full",
     .is_cross_decoder = false,
     .parameters = kFull,
     .has_sub_norm = true,
     .heads = &ModelConfig::heads,
     .rope = &ModelConfig::full_rope,
     .rope_frequencies = &ModelConfig::full_rope_frequencies,
     .kv_cache = KvCacheKind::per_token,
     .forward = forward_full},
    {.name = "cross",
     .is_cross_decoder = true,
     .parameters = kCross,
     .has_sub_norm = true,
     .heads = &ModelConfig::heads,
     .rope = &ModelConfig::cross_rope,
     .kv_cache = KvCacheKind::shared,
     .forward = forward_cross},
    {.name = "gmu",
     .is_cross_decoder = true,
     .parameters = kGmu,
     .has_sub_norm = true,
     .reads_memory = true,
     .forward = forward_gmu},
    {.name = "gate",
     .is_cross_decoder = false,
     .parameters = kGateOnly,
     .has_sub_norm = false,
     .forward = forward_gate},
};

}  // namespace

std::span<const MixerSpec> mixer_specs() { return kMixers; }

}  // namespace yocobit
