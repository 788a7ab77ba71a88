#include "model/packed_model.h"

#include <stdexcept>

namespace yocobit {
namespace {

std::string text(const std::vector<int64_t>& shape) {
  std::string result = "(";
  for (size_t i = 0; i < shape.size(); ++i) {
    result += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return result + ")";
}

int64_t item_bytes(const std::string& dtype) {
  if (dtype == "F32") return 4;
  if (dtype == "F16") return 2;
  return 1;  // U8, I8
}

}  // namespace

PackedModel::PackedModel(const std::string& path, const ModelConfig& model_config,
                         const TensorEntries& entries)
    : config(model_config), entries_(entries), path_(path), file_(path) {
  const int V = config.vocab_size, C = config.d_model;
  embedding = linear("embedding", V, C);
  for (int i = 0; i < static_cast<int>(config.layers.size()); ++i) {
    layers.push_back(layer(i));
    if (!config.layers[i]->is_cross_decoder) ++n_self_layers;
  }
  if (has_cross_decoder()) {
    first_cross_layer = n_self_layers;
    while (config.layers.at(first_cross_layer)->kv_cache != KvCacheKind::shared) {
      ++first_cross_layer;
    }
    const int width = config.heads().kv_width();
    shared_norm = floats("shared_kv.norm.weight", C);
    shared_k = linear("shared_kv.k_proj", width, C);
    shared_v = linear("shared_kv.v_proj", width, C);
  }
  norm = floats("norm.weight", C);
  // A tied head may still be stored, in another format than the embedding.
  const bool is_embedding = config.tie_embeddings && entries.count("head.weight") == 0;
  head = is_embedding ? embedding : linear("head", V, C);
  head.norm = floats_if(config.head_norm, "head.norm.weight", C);
}

std::string StoredTensor::problem(int64_t item) const {
  std::string at;
  int64_t row = columns ? item / columns : 0, column = columns ? item % columns : item;
  if (blocks) {
    const int64_t block = item / (kRowsPerGroup * kBlockBytes);
    const auto byte = static_cast<const uint8_t*>(data)[item];
    const int n_fields = 8 / blocks->bits, last = (1 << blocks->bits) - 1;
    int field = 0;  // the first whose code is invalid
    while (field + 1 < n_fields && (byte >> field * blocks->bits & last) < blocks->codes.n) ++field;
    const int64_t unit = blocks->unit_bytes, in_block = item % (kRowsPerGroup * kBlockBytes);
    const int64_t byte_of_row = in_block / (unit * kRowsPerGroup) * unit + in_block % unit;
    row = block / n_blocks * kRowsPerGroup + in_block / unit % kRowsPerGroup;
    column = block % n_blocks * blocks->block_columns + field * kBlockBytes + byte_of_row;
  }
  if (columns) {
    at = "row " + std::to_string(row) + ", column " + std::to_string(column);
  } else {
    at = "position " + std::to_string(item);
  }
  return "tensor '" + name + "' must " + rule->text + " but holds " + rule->describe(data, item) +
         " at " + at;
}

const TensorEntry& PackedModel::entry(const std::string& name) const {
  const auto found = entries_.find(name);
  if (found == entries_.end()) {
    throw std::invalid_argument(path_ + ": tensor '" + name + "' is missing");
  }
  return found->second;
}

// Return the first byte of a tensor after checking that its entry is as the kernels read it.
const void* PackedModel::bytes(const std::string& name, const std::string& dtype,
                               const std::vector<int64_t>& shape) const {
  const auto& [actual_dtype, actual_shape, begin, end, _] = entry(name);
  int64_t size = item_bytes(dtype);
  for (const int64_t length : shape) size *= length;
  const bool is_inside = 0 <= begin && begin <= end && end <= file_.size();
  if (actual_dtype != dtype || actual_shape != shape || !is_inside || end - begin != size ||
      begin % item_bytes(dtype) != 0) {
    throw std::invalid_argument(
        path_ + ": tensor '" + name + "' must be " + dtype + " " + text(shape) + ", " +
        std::to_string(size) + " bytes inside the file and aligned, but is " + actual_dtype + " " +
        text(actual_shape) + " at bytes " + std::to_string(begin) + " to " + std::to_string(end));
  }
  return file_.data() + begin;
}

const float* PackedModel::floats(const std::string& name, int64_t n) {
  const auto* values = static_cast<const float*>(bytes(name, "F32", {n}));
  tensors.push_back({.name = name, .rule = &kFiniteF32, .data = values, .n_items = n});
  return values;
}

const float* PackedModel::floats_if(bool is_present, const std::string& name, int64_t n) {
  return is_present ? floats(name, n) : nullptr;
}

// The matrix NAME.weight (m, k) in the given format, or in the one that its entry names.
Linear PackedModel::linear(const std::string& name, int m, int k, const WeightFormat* format) {
  const std::string weight = name + ".weight";
  if (!format) format = &weight_format(entry(weight).format);
  Linear linear = {.format = format, .codes = nullptr, .scales = nullptr, .m = m, .k = k};
  std::vector<int64_t> shape = {m, k};
  if (format->has_blocks()) {
    shape = {linear.n_groups(), linear.n_blocks(), kRowsPerGroup, kBlockBytes};
  }
  const auto n_items = [&] {
    int64_t n = 1;
    for (const int64_t length : shape) n *= length;
    return n;
  };
  linear.codes = bytes(weight, format->dtype, shape);
  if (format->rule) {
    tensors.push_back({.name = weight,
                       .rule = format->rule,
                       .data = linear.codes,
                       .n_items = n_items(),
                       .columns = k,
                       .blocks = format->has_blocks() ? format : nullptr,
                       .n_blocks = format->has_blocks() ? linear.n_blocks() : 0});
  }
  switch (format->scale) {
    case ScaleGranularity::none:
      return linear;
    case ScaleGranularity::tensor:
      shape = {1};
      break;
    case ScaleGranularity::row:
      shape = {m};
      break;
    case ScaleGranularity::group:
      shape = {linear.n_groups(), int64_t{linear.n_blocks()} * format->groups_per_block(),
               kRowsPerGroup};
      break;
  }
  linear.scales = bytes(weight + "_scale", format->scale_dtype, shape);
  tensors.push_back({.name = weight + "_scale",
                     .rule = format->scale_rule,
                     .data = linear.scales,
                     .n_items = n_items()});
  return linear;
}

// A matrix with the norm of its input, if the model has projection_norms.
Linear PackedModel::projection(const std::string& name, int m, int k) {
  Linear projection = linear(name, m, k);
  projection.norm = floats_if(config.projection_norms, name + ".norm.weight", k);
  return projection;
}

Layer PackedModel::layer(int index) {
  const int C = config.d_model, F = config.d_ff;
  const std::string prefix = "layers." + std::to_string(index) + ".";
  Layer layer = {};
  const MixerSpec& mixer = *config.layers[index];
  layer.mixer = &mixer;
  layer.mixer_norm = floats(prefix + "mixer_norm.weight", C);
  for (const MixerParameter& parameter : mixer.parameters) {
    const std::string name = prefix + "mixer." + parameter.name;
    const int rows = parameter.rows(config), columns = parameter.columns(config);
    Linear& matrix = layer.*parameter.linear;
    matrix = parameter.is_float32 ? linear(name, rows, columns, &weight_format("f32"))
                                  : projection(name, rows, columns);
    matrix.bias = floats_if(config.qkv_bias && parameter.has_bias, name + ".bias", rows);
  }
  layer.mixer_sub_norm = floats_if(config.sub_norm && mixer.has_sub_norm,
                                   prefix + "mixer.sub_norm.weight", layer.out.k);
  if (config.qk_norm != QKNorm::none) {
    const int D = (config.*mixer.heads)().head_dim;
    layer.q_norm = floats(prefix + "mixer.q_norm.weight", D);
    layer.k_norm = floats(prefix + "mixer.k_norm.weight", D);
  }
  layer.mixer_post_norm = floats_if(config.post_norms, prefix + "mixer_post_norm.weight", C);
  layer.ffn_norm = floats(prefix + "ffn_norm.weight", C);
  const int E = config.ffn->has_experts ? config.n_experts : 1;
  if (config.ffn->has_experts) {
    layer.ffn_router = linear(prefix + "ffn.router", E, C, &weight_format("f32"));
  }
  if (config.ffn->has_gate) layer.ffn_gate = projection(prefix + "ffn.gate_proj", E * F, C);
  layer.ffn_up = projection(prefix + "ffn.up_proj", E * F, C);
  layer.ffn_down = projection(prefix + "ffn.down_proj", E * C, F);
  layer.ffn_sub_norm =
      floats_if(config.sub_norm && config.ffn->has_sub_norm, prefix + "ffn.sub_norm.weight", F);
  layer.ffn_post_norm = floats_if(config.post_norms, prefix + "ffn_post_norm.weight", C);
  return layer;
}

}  // namespace yocobit
