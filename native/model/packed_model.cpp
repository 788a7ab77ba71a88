#include "model/packed_model.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
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

bool is_cross_decoder(Mixer mixer) { return mixer == Mixer::cross || mixer == Mixer::gmu; }

int64_t dtype_size(const std::string& dtype) {
  if (dtype == "F32") return 4;
  if (dtype == "F16") return 2;
  return 1;  // U8, I8
}

}  // namespace

MappedFile::MappedFile(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat status;
  if (descriptor < 0 || fstat(descriptor, &status) != 0 || status.st_size == 0) {
    const std::string reason = descriptor < 0 ? std::strerror(errno) : "it is empty";
    if (descriptor >= 0) close(descriptor);
    throw std::runtime_error(path + ": cannot be mapped: " + reason);
  }
  size_ = status.st_size;
  void* address = mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor, 0);
  close(descriptor);
  if (address == MAP_FAILED) {
    throw std::runtime_error(path + ": cannot be mapped: " + std::strerror(errno));
  }
  data_ = static_cast<const uint8_t*>(address);
#ifdef MADV_HUGEPAGE
  // Whatever it says: weights are read faster from huge pages where the file system has them.
  madvise(address, size_, MADV_HUGEPAGE);
#endif
}

MappedFile::~MappedFile() { munmap(const_cast<uint8_t*>(data_), size_); }

PackedModel::PackedModel(const std::string& path, const ModelConfig& model_config,
                         const std::map<std::string, TensorEntry>& tensors)
    : config(model_config), tensors_(tensors), path_(path), file_(path) {
  const int C = config.d_model;
  embedding = table("embedding");
  for (int i = 0; i < static_cast<int>(config.layers.size()); ++i) {
    layers.push_back(layer(i));
    if (!is_cross_decoder(config.layers[i])) ++n_self_layers;
  }
  if (n_self_layers < static_cast<int>(layers.size())) {
    const int width = config.n_kv_heads * config.head_dim();
    shared_norm = floats("shared_kv.norm.weight", {C});
    shared_k = linear("shared_kv.k_proj", width, C);
    shared_v = linear("shared_kv.v_proj", width, C);
  }
  norm = floats("norm.weight", {C});
  int4_head = int4_table("head");
  if (!int4_head) head = config.tie_embeddings ? embedding : table("head");
}

const TensorEntry& PackedModel::entry(const std::string& name, std::vector<int64_t> shape) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    throw std::invalid_argument(path_ + ": tensor '" + name + "' is missing");
  }
  const TensorEntry& entry = found->second;
  int64_t size = dtype_size(entry.dtype);
  for (const int64_t length : shape) size *= length;
  if (entry.shape != shape || entry.end - entry.begin != size || entry.begin < 0 ||
      entry.end > file_.size() || entry.begin % dtype_size(entry.dtype) != 0) {
    throw std::invalid_argument(
        path_ + ": tensor '" + name + "' must be " + text(shape) + ", " + std::to_string(size) +
        " bytes inside the file and aligned, but is " + text(entry.shape) + " at bytes " +
        std::to_string(entry.begin) + " to " + std::to_string(entry.end));
  }
  return entry;
}

const void* PackedModel::bytes(const std::string& name, const std::string& dtype,
                               std::vector<int64_t> shape) const {
  const TensorEntry& found = entry(name, std::move(shape));
  if (found.dtype != dtype) {
    throw std::invalid_argument(path_ + ": tensor '" + name + "' must be " + dtype + " but is " +
                                found.dtype);
  }
  return file_.data() + found.begin;
}

const float* PackedModel::floats(const std::string& name, std::vector<int64_t> shape) const {
  return static_cast<const float*>(bytes(name, "F32", std::move(shape)));
}

Linear PackedModel::linear(const std::string& name, int m, int k) const {
  Linear linear = {.kind = config.weights, .bits = {}, .dense = {}, .m = m, .k = k};
  const std::string weight = name + ".weight";
  if (config.weights == WeightKind::dense) {
    const TensorEntry& found = entry(weight, {m, k});
    const bool half = found.dtype == "F16";
    linear.dense = {.values = bytes(weight, half ? "F16" : "F32", {m, k}),
                    .scales = nullptr,
                    .type = half ? FloatType::f16 : FloatType::f32,
                    .m = m,
                    .k = k};
    return linear;
  }
  const int block = config.weights == WeightKind::ternary ? kTernaryBlock : kSignBlock;
  const int n_groups = (m + kRowsPerGroup - 1) / kRowsPerGroup, n_blocks = (k + block - 1) / block;
  linear.bits = {.codes = static_cast<const uint8_t*>(
                     bytes(weight, "U8", {n_groups, n_blocks, kRowsPerGroup, kBlockBytes})),
                 .m = m,
                 .n_blocks = n_blocks,
                 .scale = *floats(weight + "_scale", {1})};
  return linear;
}

// The embedding or the head: int8 rows with scales in quantised models, floating point in others.
DenseMatrix PackedModel::table(const std::string& name) const {
  const int V = config.vocab_size, C = config.d_model;
  if (config.weights == WeightKind::dense) return linear(name, V, C).dense;
  return {.values = bytes(name + ".weight", "I8", {V, C}),
          .scales = floats(name + ".weight_scale", {V}),
          .type = FloatType::i8,
          .m = V,
          .k = C};
}

std::optional<Int4Matrix> PackedModel::int4_table(const std::string& name) const {
  const auto found = tensors_.find(name + ".weight");
  if (found == tensors_.end() || found->second.dtype != "U8") return std::nullopt;
  const int n_groups = (config.vocab_size + kRowsPerGroup - 1) / kRowsPerGroup;
  const int n_blocks = (config.d_model + kInt4Block - 1) / kInt4Block;
  return Int4Matrix{.codes = static_cast<const uint8_t*>(bytes(
                        name + ".weight", "U8", {n_groups, n_blocks, kRowsPerGroup, kBlockBytes})),
                    .scales = static_cast<const uint16_t*>(
                        bytes(name + ".weight_scale", "F16", {n_groups, n_blocks, kRowsPerGroup})),
                    .m = config.vocab_size,
                    .n_blocks = n_blocks};
}

Layer PackedModel::layer(int index) const {
  const int C = config.d_model, F = config.d_ff;
  const std::string prefix = "layers." + std::to_string(index) + ".";
  const std::string mixer = prefix + "mixer.";
  Layer layer = {};
  layer.mixer = config.layers[index];
  layer.mixer_norm = floats(prefix + "mixer_norm.weight", {C});
  layer.out = linear(mixer + "out_proj", C, C);
  if (layer.mixer != Mixer::gmu) layer.q = linear(mixer + "q_proj", C, C);
  if (!is_cross_decoder(layer.mixer)) {
    int width = C;  // of K and V
    if (layer.mixer == Mixer::window) width = config.n_self_kv_heads * config.self_head_dim();
    if (layer.mixer == Mixer::full) width = config.n_kv_heads * config.head_dim();
    layer.k = linear(mixer + "k_proj", width, C);
    layer.v = linear(mixer + "v_proj", width, C);
  }
  if (layer.mixer == Mixer::retention || layer.mixer == Mixer::gmu) {
    layer.g = linear(mixer + "g_proj", C, C);
  }
  if (layer.mixer == Mixer::retention) {
    layer.decay = {.values = floats(mixer + "decay_proj.weight", {config.n_self_heads, C}),
                   .scales = nullptr,
                   .type = FloatType::f32,
                   .m = config.n_self_heads,
                   .k = C};
  }
  layer.ffn_norm = floats(prefix + "ffn_norm.weight", {C});
  layer.up = linear(prefix + "ffn.up_proj", F, C);
  layer.down = linear(prefix + "ffn.down_proj", C, F);
  if (config.ffn != FeedForwardKind::sign) layer.gate = linear(prefix + "ffn.gate_proj", F, C);
  if (config.sub_norm) {
    layer.out_norm = floats(mixer + "sub_norm.weight", {C});
    if (config.ffn != FeedForwardKind::sign) {
      layer.down_norm = floats(prefix + "ffn.sub_norm.weight", {F});
    }
  }
  return layer;
}

}  // namespace yocobit
