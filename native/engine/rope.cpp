#include "engine/rope.h"

#include <algorithm>
#include <cmath>

namespace yocobit {
namespace {

// The frequencies of theta, for all pairs of a head.
std::vector<double> frequencies_of(RopeKind kind, int head_dim, double theta) {
  const int pairs = head_dim / 2;
  const double last = kind == RopeKind::interleaved ? pairs - 1 : pairs;
  std::vector<double> frequencies;
  for (int i = 0; i < pairs; ++i) frequencies.push_back(std::pow(theta, -(i / last)));
  return frequencies;
}

RopeSpec rope_spec(const ModelConfig& config, int layer) {
  const MixerSpec& mixer = *config.layers[layer];
  const auto& nope = config.nope_layers;
  const bool is_nope = std::find(nope.begin(), nope.end(), layer) != nope.end();
  if (!mixer.rope || config.*mixer.rope == RopeKind::none || is_nope) {
    return {.kind = RopeKind::none, .frequencies = {}};
  }
  const RopeKind kind = config.*mixer.rope;
  if (mixer.rope_frequencies && !(config.*mixer.rope_frequencies).empty()) {
    return {.kind = kind, .frequencies = config.*mixer.rope_frequencies};
  }
  const int head_dim = (config.*mixer.heads)().head_dim;
  return {.kind = kind, .frequencies = frequencies_of(kind, head_dim, config.rope_theta)};
}

}  // namespace

RopeTable::RopeTable(const RopeSpec& spec, double factor, size_t max_rows)
    : spec_(spec),
      factor_(factor),
      cosine_(max_rows * spec.frequencies.size()),
      sine_(max_rows * spec.frequencies.size()) {}

void RopeTable::set_position(int row, int64_t position) {
  const size_t n = spec_.frequencies.size();
  for (size_t i = 0; i < n; ++i) {
    const double angle = static_cast<double>(position) * spec_.frequencies[i];
    cosine_[row * n + i] = static_cast<float>(factor_ * std::cos(angle));
    sine_[row * n + i] = static_cast<float>(factor_ * std::sin(angle));
  }
}

void RopeTable::apply(const Kernels& kernels, int row, float* head) const {
  if (spec_.kind == RopeKind::none) return;
  const size_t n = spec_.frequencies.size(), at = row * n;
  const bool is_half = spec_.kind == RopeKind::half;
  const auto rope = is_half ? kernels.rope_half : kernels.rope_interleaved;
  rope(head, &cosine_[at], &sine_[at], static_cast<int>(2 * n));
}

RopeTables::RopeTables(const ModelConfig& config) {
  for (size_t layer = 0; layer < config.layers.size(); ++layer) {
    const RopeSpec spec = rope_spec(config, static_cast<int>(layer));
    const auto found = std::find_if(tables_.begin(), tables_.end(),
                                    [&](const RopeTable& table) { return table.spec() == spec; });
    table_of_.push_back(found - tables_.begin());
    if (found == tables_.end())
      tables_.emplace_back(spec, config.rope_factor, config.ffn->max_batch_tokens);
  }
}

void RopeTables::set_position(int row, int64_t position) {
  for (RopeTable& table : tables_) table.set_position(row, position);
}

}  // namespace yocobit
