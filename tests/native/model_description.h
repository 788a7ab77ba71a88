// A model as test_native.py describes it to the programs of tests/native.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <span>
#include <string>

#include "model/model_config.h"
#include "model/packed_model.h"

namespace yocobit {

// The next name in `in`, as a record of a table.
template <typename Record>
const Record* read_record(std::istream& in, std::span<const Record> table) {
  std::string name;
  in >> name;
  for (const Record& record : table) {
    if (name == record.name) return &record;
  }
  std::fprintf(stderr, "unknown name in the description: %s\n", name.c_str());
  std::exit(2);
}

inline void read(std::istream& in, RopeKind& rope) {
  std::string name;
  in >> name;
  rope = name == "none" ? RopeKind::none : name == "half" ? RopeKind::half : RopeKind::interleaved;
}

inline ModelConfig read_config(std::istream& in) {
  ModelConfig c = {};
  in >> c.vocab_size >> c.d_model >> c.d_ff >> c.n_heads >> c.n_kv_heads >> c.n_self_heads >>
      c.n_self_kv_heads >> c.window;
  int n_layers;
  in >> n_layers;
  for (int i = 0; i < n_layers; ++i) c.layers.push_back(read_record(in, mixer_specs()));
  c.ffn = read_record(in, feed_forward_specs());
  in >> c.sub_norm >> c.tie_embeddings >> c.scale_embedding;
  for (RopeKind* rope : {&c.retention_rope, &c.window_rope, &c.full_rope, &c.cross_rope}) {
    read(in, *rope);
  }
  std::string attention;
  in >> attention >> c.cross_positions >> c.rope_theta >> c.norm_eps;
  in >> c.n_experts >> c.n_active_experts;
  c.cross_attention = attention == "index" ? CrossAttention::index : CrossAttention::full;
  return c;
}

inline TensorEntries read_tensors(std::istream& in) {
  TensorEntries tensors;
  std::string name;
  while (in >> name) {
    TensorEntry& tensor = tensors[name];
    int n_dimensions;
    in >> tensor.dtype >> tensor.format >> tensor.begin >> tensor.end >> n_dimensions;
    tensor.shape.resize(n_dimensions);
    for (int64_t& length : tensor.shape) in >> length;
  }
  return tensors;
}

struct ModelDescription {
  explicit ModelDescription(const char* file) {
    std::ifstream in(file);
    std::getline(in, path);
    config = read_config(in);
    tensors = read_tensors(in);
  }

  std::string path;  // of the packed tensors
  ModelConfig config;
  TensorEntries tensors;
};

}  // namespace yocobit
