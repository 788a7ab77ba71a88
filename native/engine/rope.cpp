#include "engine/rope.h"

#include <algorithm>
#include <cmath>

namespace yocobit {

RopeTable::RopeTable(RopeKind kind, int head_dim, double theta) : kind_(kind), head_dim_(head_dim) {
  if (kind == RopeKind::none) return;
  const int pairs = head_dim / 2;
  const double last = kind == RopeKind::interleaved ? pairs - 1 : pairs;
  for (int i = 0; i < pairs; ++i) frequencies_.push_back(std::pow(theta, -(i / last)));
  cosine_.resize(static_cast<size_t>(kMaxBatchTokens) * pairs);
  sine_.resize(static_cast<size_t>(kMaxBatchTokens) * pairs);
}

void RopeTable::set_position(int row, int64_t position) {
  const size_t pairs = frequencies_.size();
  for (size_t i = 0; i < pairs; ++i) {
    const double angle = static_cast<double>(position) * frequencies_[i];
    cosine_[row * pairs + i] = static_cast<float>(std::cos(angle));
    sine_[row * pairs + i] = static_cast<float>(std::sin(angle));
  }
}

void RopeTable::apply(const Kernels& kernels, int row, float* head) const {
  if (kind_ == RopeKind::none) return;
  const size_t at = row * frequencies_.size();
  const auto rope = kind_ == RopeKind::interleaved ? kernels.rope_interleaved : kernels.rope_half;
  rope(head, &cosine_[at], &sine_[at], head_dim_);
}

RopeTables::RopeTables(const ModelConfig& config) : config_(config) {
  for (const MixerSpec* mixer : config.layers) {
    if (!mixer->rope) continue;
    const RopeKind kind = config.*mixer->rope;
    const int head_dim = (config.*mixer->heads)().head_dim;
    const bool is_present = std::any_of(tables_.begin(), tables_.end(), [&](const auto& table) {
      return table.is(kind, head_dim);
    });
    if (!is_present) tables_.emplace_back(kind, head_dim, config.rope_theta);
  }
}

void RopeTables::set_position(int row, int64_t position) {
  for (RopeTable& table : tables_) table.set_position(row, position);
}

RopeTable& RopeTables::of(const MixerSpec& mixer) {
  const int head_dim = (config_.*mixer.heads)().head_dim;
  return *std::find_if(tables_.begin(), tables_.end(), [&](const RopeTable& table) {
    return table.is(config_.*mixer.rope, head_dim);
  });
}

const RopeTable& RopeTables::of(const MixerSpec& mixer) const {
  return const_cast<RopeTables*>(this)->of(mixer);
}

}  // namespace yocobit
