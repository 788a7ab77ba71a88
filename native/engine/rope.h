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

// The table of one kind of rope and one head size.
class RopeTable {
 public:
  RopeTable(RopeKind kind, int head_dim, double theta);

  // Compute the angles of a row, in double: float is too coarse past position 1e5.
  void set_position(int row, int64_t position);

  // Rotate one head [D] of a row in place.
  void apply(const Kernels& kernels, int row, float* head) const;

  bool is(RopeKind kind, int head_dim) const { return kind == kind_ && head_dim == head_dim_; }

 private:
  RopeKind kind_;
  int head_dim_;
  std::vector<double> frequencies_;   // [D / 2], angle per position; empty for RopeKind::none
  std::vector<float> cosine_, sine_;  // [N][D / 2]
};

// The tables that the mixers of a model need; mixers with the same kind and head size share one.
class RopeTables {
 public:
  explicit RopeTables(const ModelConfig& config);

  void set_position(int row, int64_t position);
  RopeTable& of(const MixerSpec& mixer);
  const RopeTable& of(const MixerSpec& mixer) const;

 private:
  const ModelConfig& config_;
  std::vector<RopeTable> tables_;
};

}  // namespace yocobit
