#include "bindings/model_config.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>

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

}  // namespace

ModelConfig model_config(const nb::dict& fields) {
  const auto integer = [&](const char* name) { return nb::cast<int>(fields[name]); };
  const auto text = [&](const char* name) { return nb::cast<std::string>(fields[name]); };
  const auto flag = [&](const char* name) { return nb::cast<bool>(fields[name]); };
  ModelConfig config = {};
  config.vocab_size = integer("vocab_size");
  config.d_model = integer("d_model");
  config.d_ff = integer("d_ff");
  config.n_heads = integer("n_heads");
  config.n_kv_heads = integer("n_kv_heads");
  config.n_self_heads = integer("n_self_heads");
  config.n_self_kv_heads = integer("n_self_kv_heads");
  config.window = integer("window");
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
  config.cross_positions = integer("cross_positions");
  if (config.heads().head_dim > kMaxHeadDim || config.self_heads().head_dim > kMaxHeadDim) {
    throw std::invalid_argument("heads must have at most " + std::to_string(kMaxHeadDim) +
                                " values each");
  }
  return config;
}

TensorEntries tensor_entries(const nb::dict& tensors, const nb::dict& formats) {
  TensorEntries entries;
  for (const auto& [key, value] : tensors) {
    const nb::tuple fields = nb::cast<nb::tuple>(value);
    const std::string name = nb::cast<std::string>(key);
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
