// Rotary position embedding (RoPE): cosines and sines of the rows of a batch.
//
// Letters:  N rows   D head size
#pragma once

#include <cstdint>
#include <vector>

#include "engine/batch.h"
#include "kernels/kernels.h"
#include "model/packed_model.h"

namespace yocobit {

// The frequencies of rotated pairs: what the tables of two layers may differ in.
struct RopeSpec {
  RopeKind kind;
  std::vector<double> frequencies;  // angle per position of each pair; at most D / 2, and none for
                                    // RopeKind::none

  bool operator==(const RopeSpec&) const = default;
};

// The cosines and sines of one RopeSpec.
class RopeTable {
 public:
  RopeTable(const RopeSpec& spec, double factor);

  // Compute the angles of a row, in double: float is too coarse past position 1e5.
  void set_position(int row, int64_t position);

  // Rotate the first values of one head of a row in place, two for each frequency.
  void apply(const Kernels& kernels, int row, float* head) const;

  const RopeSpec& spec() const { return spec_; }

 private:
  RopeSpec spec_;
  double factor_;                     // of cosines and sines
  std::vector<float> cosine_, sine_;  // [N][frequencies]
};

// The tables of a model's layers; layers with the same rope share one.
class RopeTables {
 public:
  explicit RopeTables(const ModelConfig& config);

  void set_position(int row, int64_t position);
  RopeTable& of(int layer) { return tables_[table_of_[layer]]; }
  const RopeTable& of(int layer) const { return tables_[table_of_[layer]]; }

 private:
  std::vector<RopeTable> tables_;
  std::vector<size_t> table_of_;  // by layer; of those with rope
};

}  // namespace yocobit
