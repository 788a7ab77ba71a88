// A packed model, used straight from its memory map. docs/format.md is the format.
//
// Letters:  C model width   F feed-forward width   H heads   V vocabulary   D head size
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace yocobit {

enum class Mixer { retention, window, full, cross, gmu };
enum class CrossAttention { full, index, window };
enum class FeedForwardKind { swiglu, relu2, sign };
enum class WeightKind { ternary, sign, dense };
enum class RopeKind { interleaved, half, none };

// The fields of yocobit.config.ModelConfig that the engine needs, checked there.
struct ModelConfig {
  int vocab_size, d_model, d_ff;
  int n_heads, n_kv_heads, n_self_heads, n_self_kv_heads;
  int window;
  std::vector<Mixer> layers;
  FeedForwardKind ffn;
  WeightKind weights;
  bool sub_norm, tie_embeddings, scale_embedding;
  RopeKind retention_rope, window_rope, full_rope, cross_rope;
  double rope_theta;
  float norm_eps;
  CrossAttention cross_attention;
  int cross_positions;  // that a token attends to, unless all

  int head_dim() const { return d_model / n_heads; }
  int self_head_dim() const { return d_model / n_self_heads; }
  int cross_blocks() const { return cross_positions / kAttentionTile; }
};

// Where a tensor lies in the file, as the header says.
struct TensorEntry {
  std::string dtype;
  std::vector<int64_t> shape;
  int64_t begin, end;  // bytes from the start of the file
};

// A whole file mapped for reading; pages are shared between processes.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const uint8_t* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  const uint8_t* data_ = nullptr;
  int64_t size_ = 0;
};

// y = x W^T, W (M, K) of one of the three kinds.
struct Linear {
  WeightKind kind;
  BitMatrix bits;     // ternary, sign
  DenseMatrix dense;  // dense
  int m, k;

  int n_groups() const { return (m + kRowsPerGroup - 1) / kRowsPerGroup; }
};

struct Layer {
  Mixer mixer;
  const float* mixer_norm;  // [C]
  Linear q, k, v, g, out;   // those that the mixer has
  DenseMatrix decay;        // [H][C], retention
  const float* out_norm;    // [C], or nullptr without SubLN
  const float* ffn_norm;    // [C]
  Linear gate, up, down;
  const float* down_norm;  // [F], or nullptr
};

// Checks that every tensor it takes lies inside the file with the size that the configuration
// implies; throws std::invalid_argument with the tensor's name otherwise.
class PackedModel {
 public:
  PackedModel(const std::string& path, const ModelConfig& config,
              const std::map<std::string, TensorEntry>& tensors);

  bool has_cross_decoder() const { return n_self_layers < static_cast<int>(layers.size()); }

  const ModelConfig config;
  DenseMatrix embedding;  // [V][C]
  std::vector<Layer> layers;
  int n_self_layers = 0;               // those before the first cross or gmu layer
  const float* shared_norm = nullptr;  // [C], if there are cross layers
  Linear shared_k, shared_v;
  const float* norm;  // [C]
  DenseMatrix head;   // [V][C], unless there is
  std::optional<Int4Matrix> int4_head;

 private:
  const TensorEntry& entry(const std::string& name, std::vector<int64_t> shape) const;
  const void* bytes(const std::string& name, const std::string& dtype,
                    std::vector<int64_t> shape) const;
  const float* floats(const std::string& name, std::vector<int64_t> shape) const;
  Linear linear(const std::string& name, int m, int k) const;
  DenseMatrix table(const std::string& name) const;
  std::optional<Int4Matrix> int4_table(const std::string& name) const;
  Layer layer(int index) const;

  const std::map<std::string, TensorEntry>& tensors_;  // valid during construction only
  std::string path_;
  MappedFile file_;
};

}  // namespace yocobit
