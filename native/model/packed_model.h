// A packed model, read in place from its memory map. docs/reference/packed-format.md is the format.
//
// Validation: yocobit.packing.reader checks the structure (hashes of header and config.json, the
// set of tensors, finite norms and scales), `yocobit verify` also every hash. This class checks
// dtype, shape, size, position and alignment of each tensor where it makes a pointer into the file:
// no file makes a kernel read out of bounds. Engine::find_problems checks the values of `tensors`.
//
// Letters:  C model width   F feed-forward width   E experts   H heads   V vocabulary
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model/linear.h"
#include "model/mapped_file.h"
#include "model/mixer_spec.h"
#include "model/model_config.h"
#include "model/tensor_contents.h"

namespace yocobit {

// A tensor as the header of the file describes it.
struct TensorEntry {
  std::string dtype;
  std::vector<int64_t> shape;
  int64_t begin, end;  // bytes from the start of the file
  std::string format;  // of a matrix, a name of weight_formats(); "" for a vector or scales
};

using TensorEntries = std::map<std::string, TensorEntry>;

// A tensor in the file whose values are checked before its first use.
struct StoredTensor {
  std::string name;
  const ContentRule* rule;
  const void* data;
  int64_t n_items;
  int64_t columns;             // of a matrix of contiguous rows; 0: a vector
  const WeightFormat* blocks;  // of a matrix of interleaved rows, or nullptr
  int64_t n_blocks;            // of such a row

  // "tensor 'NAME' must RULE but holds VALUE at row 3, column 5", for an invalid item.
  std::string problem(int64_t item) const;
};

struct Layer {
  const MixerSpec* mixer;
  const float* mixer_norm;            // [C]
  Linear q, k, v, g, out, decay;      // those that the mixer has
  const float *q_norm, *k_norm;       // [D], or nullptr without qk_norm
  const float* mixer_sub_norm;        // [H D], or nullptr without SubLN
  const float* mixer_post_norm;       // [C], or nullptr without post_norms
  const float* ffn_norm;              // [C]
  Linear ffn_router;                  // (E, C) of an FFN with experts
  Linear ffn_gate, ffn_up, ffn_down;  // the gate where the FFN has one; all experts
  const float* ffn_sub_norm;          // [F], or nullptr
  const float* ffn_post_norm;         // [C], or nullptr
};

class PackedModel {
 public:
  // Throws std::invalid_argument, naming the tensor, where an entry does not match the
  // configuration, and what MappedFile throws.
  PackedModel(const std::string& path, const ModelConfig& config, const TensorEntries& tensors);

  const MappedFile& file() const { return file_; }

  bool has_cross_decoder() const { return n_self_layers < static_cast<int>(layers.size()); }

  // Call visit(linear) for every matrix, those that are applied and the embedding.
  template <typename Visit>
  void for_each_linear(const Visit& visit) const;

  const ModelConfig config;
  Linear embedding;  // (V, C)
  std::vector<Layer> layers;
  int n_self_layers = 0;               // those before the cross-decoder
  int first_cross_layer = 0;           // the first that reads the shared K and V
  const float* shared_norm = nullptr;  // [C], of the input of the shared K and V
  Linear shared_k, shared_v;           // (G D, C), with a cross-decoder
  const float* norm;                   // [C]
  Linear head;                         // (V, C); the codes of the embedding if tied
  std::vector<StoredTensor> tensors;   // those that do not allow all bit patterns

 private:
  const TensorEntry& entry(const std::string& name) const;
  const void* bytes(const std::string& name, const std::string& dtype,
                    const std::vector<int64_t>& shape) const;
  const float* floats(const std::string& name, int64_t n);
  const float* floats_if(bool is_present, const std::string& name, int64_t n);
  Linear linear(const std::string& name, int m, int k, const WeightFormat* format = nullptr);
  Linear projection(const std::string& name, int m, int k);
  Layer layer(int index);

  const TensorEntries& entries_;  // valid during construction only
  std::string path_;
  MappedFile file_;
};

template <typename Visit>
void PackedModel::for_each_linear(const Visit& visit) const {
  const auto visit_present = [&](const Linear& linear) {
    if (linear.format) visit(linear);
  };
  for (const Layer& layer : layers) {
    for (const MixerParameter& parameter : layer.mixer->parameters) {
      visit(layer.*parameter.linear);
    }
    for (const Linear* ffn : {&layer.ffn_router, &layer.ffn_gate, &layer.ffn_up, &layer.ffn_down}) {
      visit_present(*ffn);
    }
  }
  for (const Linear* linear : {&embedding, &shared_k, &shared_v, &head}) visit_present(*linear);
}

}  // namespace yocobit
