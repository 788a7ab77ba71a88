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
int self_kv_width(const ModelConfig& config) { return config.self_heads().kv_width(); }
int kv_width(const ModelConfig& config) { return config.heads().kv_width(); }
int n_self_heads(const ModelConfig& config) { return config.n_self_heads; }

int64_t retention_state_values(const ModelConfig& config) {  // [H][D][D]
  const Heads heads = config.retention_heads();
  return int64_t{heads.n_heads} * heads.head_dim * heads.head_dim;
}

constexpr MixerParameter kQuery = {"q_proj", &Layer::q, model_width};
constexpr MixerParameter kGate = {"g_proj", &Layer::g, model_width};
constexpr MixerParameter kOutput = {"out_proj", &Layer::out, model_width};

constexpr MixerParameter kRetention[] = {kQuery,
                                         {"k_proj", &Layer::k, model_width},
                                         {"v_proj", &Layer::v, model_width},
                                         kGate,
                                         {"decay_proj", &Layer::decay, n_self_heads, true},
                                         kOutput};
constexpr MixerParameter kWindow[] = {
    kQuery, {"k_proj", &Layer::k, self_kv_width}, {"v_proj", &Layer::v, self_kv_width}, kOutput};
constexpr MixerParameter kFull[] = {
    kQuery, {"k_proj", &Layer::k, kv_width}, {"v_proj", &Layer::v, kv_width}, kOutput};
constexpr MixerParameter kCross[] = {kQuery, kOutput};
constexpr MixerParameter kGmu[] = {kGate, kOutput};
constexpr MixerParameter kGateOnly[] = {{"gate_proj", &Layer::g, model_width}};

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
     .kv_cache = KvCacheKind::ring,
     .forward = forward_window},
    {.name = "full",
     .is_cross_decoder = false,
     .parameters = kFull,
     .has_sub_norm = true,
     .heads = &ModelConfig::heads,
     .rope = &ModelConfig::full_rope,
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
