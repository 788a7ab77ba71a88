#include "bindings/model_config.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "engine/block_index.h"

namespace nb = nanobind;

namespace yocobit {
namespace {

[[noreturn]] void reject(const char* what, const std::string& value) {
  throw std::invalid_argument(std::string(what) + " is not known to the engine: '" + value + "'");
}

// The record of a table with that name.
template <typename Record>
const Record& record_of(const char* what, std::span<const Record> table, const std::string& name) {
  for (const Record& record : table) {
    if (name == record.name) return record;
  }
  reject(what, name);
}

RopeKind rope_kind(const std::string& name) {
  if (name == "interleaved") return RopeKind::interleaved;
  if (name == "half") return RopeKind::half;
  if (name == "none") return RopeKind::none;
  reject("rope", name);
}

QKNorm qk_norm(const std::string& name) {
  if (name == "none") return QKNorm::none;
  if (name == "before_rope") return QKNorm::before_rope;
  if (name == "after_rope") return QKNorm::after_rope;
  reject("qk_norm", name);
}

CrossAttention cross_attention(const std::string& name) {
  if (name == "full") return CrossAttention::full;
  if (name == "index") return CrossAttention::index;
  reject("cross attention", name);
}

void require(bool holds, const char* what, const char* rule) {
  if (!holds) throw std::invalid_argument(std::string(what) + " must be " + rule);
}

bool is_positive(double value) { return std::isfinite(value) && value > 0; }

bool has_self_attention_features(const ModelConfig& c) {
  return c.head_size || c.attention_scale || c.qk_norm != QKNorm::none || c.qkv_bias ||
         !c.window_rope_frequencies.empty() || !c.full_rope_frequencies.empty() ||
         c.rope_factor != 1.0 || !c.nope_layers.empty() || c.projection_norms;
}

void check_frequencies(const std::vector<double>& frequencies, RopeKind kind, const Heads& heads) {
  require(frequencies.empty() || kind == RopeKind::half, "rope frequencies",
          "left out unless the rope is 'half'");
  require(frequencies.size() <= static_cast<size_t>(heads.head_dim / 2) &&
              std::all_of(frequencies.begin(), frequencies.end(), is_positive),
          "rope frequencies", "finite and positive, at most one for each pair of a head");
}

void check_features(const ModelConfig& config) {
  require(!has_self_attention_features(config) ||
              std::all_of(config.layers.begin(), config.layers.end(),
                          [](const MixerSpec* mixer) { return mixer->is_self_attention(); }),
          "features of self-attention", "of models with 'full' and 'window' layers only");
  check_frequencies(config.full_rope_frequencies, config.full_rope, config.heads());
  check_frequencies(config.window_rope_frequencies, config.window_rope, config.self_heads());
  const int L = static_cast<int>(config.layers.size());
  require(std::all_of(config.nope_layers.begin(), config.nope_layers.end(),
                      [&](int layer) { return 0 <= layer && layer < L; }),
          "nope_layers", "indices of layers");
  require(config.projection_norm_eps > 0 && config.projection_norm_eps <= 1, "projection_norm_eps",
          "in (0, 1]");
  const std::pair<const char*, double> scales[] = {
      {"rope_factor", static_cast<float>(config.rope_factor)},
      {"attention_scale", config.attention_scale.value_or(1.0f)},
      {"embedding_scale", config.embedding_scale.value_or(1.0f)},
      {"residual_scale", config.residual_scale},
      {"logit_scale", config.logit_scale},
      {"swiglu_limit", config.swiglu_limit.value_or(1.0f)}};
  for (const auto& [name, scale] : scales) {
    require(is_positive(scale), name, "finite and positive in float32");
  }
}

void check_experts(const ModelConfig& config) {
  const int64_t E = config.n_experts;
  if (!config.ffn->has_experts) {
    require(E == 0, "n_experts", "0 without experts");
    require(config.n_active_experts == 0, "n_active_experts", "0 without experts");
    return;
  }
  require(1 <= E && E <= 1024, "n_experts", "from 1 to 1024");
  require(1 <= config.n_active_experts && config.n_active_experts <= std::min<int64_t>(E, 64),
          "n_active_experts", "from 1 to 64, at most n_experts");
  require(E * std::max(config.d_ff, config.d_model) <= 1 << 24, "n_experts",
          "at most 16777216 rows of a matrix");
  require(!config.projection_norms, "projection_norms", "left out with experts");
}

void check(const ModelConfig& config) {
  require(config.d_model % kLanes == 0, "d_model", "a multiple of 8");
  require(config.d_ff % kLanes == 0, "d_ff", "a multiple of 8");
  for (const Heads& heads : {config.heads(), config.self_heads()}) {
    require(heads.head_dim % 4 == 0 && 0 < heads.head_dim && heads.head_dim <= kMaxHeadDim, "heads",
            "a multiple of 4 values each, at most 1024");
    require(heads.head_dim % kLanes == 0 ||
                (config.head_size && config.qk_norm == QKNorm::none && heads.width() % kLanes == 0),
            "heads",
            "a multiple of 8 values each, or with a head_size and without qk_norm together");
    require(config.head_size ? heads.width() <= 1 << 16 : heads.width() == config.d_model, "heads",
            "d_model values together, or at most 65536 with a head_size");
    require(heads.n_heads % heads.n_kv_heads == 0, "KV heads", "a divisor of the query heads");
  }
  const int n_always = kFirstBlocks + kLastBlocks;
  require(config.cross_positions % kAttentionTile == 0 && config.cross_blocks() > n_always,
          "cross_positions", "whole blocks, more than those that every token attends to");
  require(config.rope_theta > 1 && config.rope_theta <= 1e12, "rope_theta", "in (1, 1e12]");
  require(config.norm_eps > 0 && config.norm_eps <= 1, "norm_eps", "in (0, 1]");
  require(!config.layers.empty() && !config.layers[0]->is_cross_decoder, "layers",
          "at least one, the first of the self-decoder");
  bool is_cross = false, has_shared = false;
  for (const MixerSpec* mixer : config.layers) {
    require(!is_cross || mixer->is_cross_decoder, "layers", "the self-decoder first");
    is_cross = mixer->is_cross_decoder;
    has_shared |= mixer->kv_cache == KvCacheKind::shared;
  }
  require(is_cross == has_shared, "layers", "with a 'cross' if there is a cross-decoder");
  check_experts(config);
  check_features(config);
}

}  // namespace

ModelConfig model_config(const nb::dict& fields) {
  const auto integer = [&](const char* name, int most) {
    const int value = nb::cast<int>(fields[name]);
    require(1 <= value && value <= most, name, "an integer in its range");
    return value;
  };
  const auto text = [&](const char* name) { return nb::cast<std::string>(fields[name]); };
  const auto flag = [&](const char* name) { return nb::cast<bool>(fields[name]); };
  ModelConfig config = {};
  config.vocab_size = integer("vocab_size", 1 << 20);
  config.d_model = integer("d_model", 1 << 16);
  config.d_ff = integer("d_ff", 1 << 17);
  config.n_heads = integer("n_heads", 1 << 13);
  config.n_kv_heads = integer("n_kv_heads", 1 << 13);
  config.n_self_heads = integer("n_self_heads", 1 << 13);
  config.n_self_kv_heads = integer("n_self_kv_heads", 1 << 13);
  config.window = integer("window", 1 << 24);
  for (const std::string& name : nb::cast<std::vector<std::string>>(fields["layers"])) {
    config.layers.push_back(&record_of("mixer", mixer_specs(), name));
  }
  config.ffn = &record_of("ffn", feed_forward_specs(), text("ffn"));
  config.sub_norm = flag("sub_norm");
  config.tie_embeddings = flag("tie_embeddings");
  config.scale_embedding = flag("scale_embedding");
  config.retention_rope = rope_kind(text("retention_rope"));
  config.window_rope = rope_kind(text("window_rope"));
  config.full_rope = rope_kind(text("full_rope"));
  config.cross_rope = rope_kind(text("cross_rope"));
  config.rope_theta = nb::cast<double>(fields["rope_theta"]);
  config.norm_eps = nb::cast<float>(fields["norm_eps"]);
  config.cross_attention = cross_attention(text("cross_attention"));
  config.cross_positions = integer("cross_positions", 1 << 20);
  // ModelConfig.to_dict() leaves out features that have their default.
  const auto read_feature = [&](const char* name, auto& value) {
    if (!fields.contains(name)) return;
    value = nb::cast<std::remove_reference_t<decltype(value)>>(fields[name]);
  };
  std::string norm_of_heads = "none";
  read_feature("qk_norm", norm_of_heads);
  config.qk_norm = qk_norm(norm_of_heads);
  read_feature("head_size", config.head_size);
  read_feature("attention_scale", config.attention_scale);
  read_feature("qkv_bias", config.qkv_bias);
  read_feature("window_rope_frequencies", config.window_rope_frequencies);
  read_feature("full_rope_frequencies", config.full_rope_frequencies);
  read_feature("rope_factor", config.rope_factor);
  read_feature("nope_layers", config.nope_layers);
  read_feature("projection_norms", config.projection_norms);
  read_feature("projection_norm_eps", config.projection_norm_eps);
  read_feature("head_norm", config.head_norm);
  read_feature("post_norms", config.post_norms);
  read_feature("embedding_scale", config.embedding_scale);
  read_feature("residual_scale", config.residual_scale);
  read_feature("logit_scale", config.logit_scale);
  read_feature("n_experts", config.n_experts);
  read_feature("n_active_experts", config.n_active_experts);
  read_feature("swiglu_limit", config.swiglu_limit);
  read_feature("exact_activations", config.exact_activations);
  check(config);
  return config;
}

TensorEntries tensor_entries(const nb::dict& tensors, const nb::dict& formats) {
  TensorEntries entries;
  for (const auto& [key, value] : tensors) {
    const nb::tuple fields = nb::cast<nb::tuple>(value);
    const std::string name = nb::cast<std::string>(key);
    if (nb::len(fields) != 4) throw std::invalid_argument(name + ": must have four fields");
    entries[name] = {
        .dtype = nb::cast<std::string>(fields[0]),
        .shape = nb::cast<std::vector<int64_t>>(fields[1]),
        .begin = nb::cast<int64_t>(fields[2]),
        .end = nb::cast<int64_t>(fields[3]),
        .format = formats.contains(key) ? nb::cast<std::string>(formats[key]) : std::string()};
  }
  return entries;
}

}  // namespace yocobit
