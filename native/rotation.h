// The angles of rotary position embedding for the rows at work.
//
// Letters:  N rows   D head size
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "packed_model.h"

namespace yocobit {

class Rotation {
 public:
  Rotation(RopeKind kind, int head_dim, double theta, int max_rows)
      : kind_(kind), head_dim_(head_dim) {
    if (kind == RopeKind::none) return;
    const int pairs = head_dim / 2;
    const double last = kind == RopeKind::interleaved ? pairs - 1 : pairs;
    for (int i = 0; i < pairs; ++i) frequencies_.push_back(std::pow(theta, -(i / last)));
    cosine_.resize(static_cast<size_t>(max_rows) * pairs);
    sine_.resize(static_cast<size_t>(max_rows) * pairs);
  }

  // Set the angles of a row, in double: float loses them past position 1e5.
  void turn(int row, int64_t position) {
    const size_t pairs = frequencies_.size();
    for (size_t i = 0; i < pairs; ++i) {
      const double angle = static_cast<double>(position) * frequencies_[i];
      cosine_[row * pairs + i] = static_cast<float>(std::cos(angle));
      sine_[row * pairs + i] = static_cast<float>(std::sin(angle));
    }
  }

  // Rotate one head [D] of a row in place.
  void apply(const Kernels& kernels, int row, float* head) const {
    if (kind_ == RopeKind::none) return;
    const size_t at = row * frequencies_.size();
    const auto rope = kind_ == RopeKind::interleaved ? kernels.rope_interleaved : kernels.rope_half;
    rope(head, &cosine_[at], &sine_[at], head_dim_);
  }

 private:
  RopeKind kind_;
  int head_dim_;
  std::vector<double> frequencies_;   // [D / 2], angle per position
  std::vector<float> cosine_, sine_;  // [N][D / 2]
};

}  // namespace yocobit
