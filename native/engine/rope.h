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

// The rotation of a layer's queries and keys. Layers with equal rotations share a table.
struct RopeSpec {
  RopeKind kind;
  std::vector<double> frequencies;  // [n], angle per position of each pair: n <= D / 2, and 0 for
                                    // RopeKind::none

  bool operator==(const RopeSpec&) const = default;
};

// The cosines and sines of one RopeSpec.
class RopeTable {
 public:
  RopeTable(const RopeSpec& spec, double factor, size_t max_rows);

  // Compute the angles of a row, in double: float is too coarse past position 1e5.
  void set_position(int row, int64_t position);

  // Rotate the first 2 n values of one head of a row in place.
  void apply(const Kernels& kernels, int row, float* head) const;

  const RopeSpec& spec() const { return spec_; }

 private:
  RopeSpec spec_;
  double factor_;                     // multiplies cosines and sines
  std::vector<float> cosine_, sine_;  // [N][n]
};

// The tables of a model's layers.
class RopeTables {
 public:
  explicit RopeTables(const ModelConfig& config);

  void set_position(int row, int64_t position);
  RopeTable& of(int layer) { return tables_[table_of_[layer]]; }
  const RopeTable& of(int layer) const { return tables_[table_of_[layer]]; }

 private:
  std::vector<RopeTable> tables_;
  std::vector<size_t> table_of_;  // [L], the index in tables_
};

}  // namespace yocobit
