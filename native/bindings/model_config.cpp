#include "bindings/model_config.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>

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

CrossAttention cross_attention(const std::string& name) {
  if (name == "full") return CrossAttention::full;
  if (name == "index") return CrossAttention::index;
  reject("cross attention", name);
}

void require(bool holds, const char* what, const char* rule) {
  if (!holds) throw std::invalid_argument(std::string(what) + " must be " + rule);
}

void check(const ModelConfig& config) {
  require(config.d_model % kLanes == 0, "d_model", "a multiple of 8");
  require(config.d_ff % kLanes == 0, "d_ff", "a multiple of 8");
  for (const Heads& heads : {config.heads(), config.self_heads()}) {
    require(heads.head_dim % kLanes == 0 && heads.head_dim * heads.n_heads == config.d_model &&
                0 < heads.head_dim && heads.head_dim <= kMaxHeadDim,
            "heads", "a multiple of 8 values each, at most 1024");
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
