// The angles of rotary position embedding for the rows at work.
//
// Letters:  N rows   D head size
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/kernels.h"
#include "model/packed_model.h"

namespace yocobit {

class Rotation {
 public:
  Rotation(RopeKind kind, int head_dim, double theta, int max_rows)
      : kind_(kind), head_dim_(head_dim), angles_(std::make_shared<Angles>()) {
    if (kind == RopeKind::none) return;
    const int pairs = head_dim / 2;
    const double last = kind == RopeKind::interleaved ? pairs - 1 : pairs;
    for (int i = 0; i < pairs; ++i) angles_->frequencies.push_back(std::pow(theta, -(i / last)));
    angles_->cosine.resize(static_cast<size_t>(max_rows) * pairs);
    angles_->sine.resize(static_cast<size_t>(max_rows) * pairs);
  }

  // Share the angles of another that turns alike, so that only one of them has to be turned.
  bool share(const Rotation& other) {
    if (angles_->frequencies != other.angles_->frequencies) return false;
    angles_ = other.angles_;
    return true;
  }

  // Set the angles of a row, in double: float loses them past position 1e5.
  void turn(int row, int64_t position) {
    const size_t pairs = angles_->frequencies.size();
    for (size_t i = 0; i < pairs; ++i) {
      const double angle = static_cast<double>(position) * angles_->frequencies[i];
      angles_->cosine[row * pairs + i] = static_cast<float>(std::cos(angle));
      angles_->sine[row * pairs + i] = static_cast<float>(std::sin(angle));
    }
  }

  // Rotate one head [D] of a row in place.
  void apply(const Kernels& kernels, int row, float* head) const {
    if (kind_ == RopeKind::none) return;
    const size_t at = row * angles_->frequencies.size();
    const auto rope = kind_ == RopeKind::interleaved ? kernels.rope_interleaved : kernels.rope_half;
    rope(head, &angles_->cosine[at], &angles_->sine[at], head_dim_);
  }

 private:
  struct Angles {
    std::vector<double> frequencies;  // [D / 2], angle per position
    std::vector<float> cosine, sine;  // [N][D / 2]
  };

  RopeKind kind_;
  int head_dim_;
  std::shared_ptr<Angles> angles_;
};

}  // namespace yocobit
