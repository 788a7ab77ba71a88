// The codes of 1-bit and 1.58-bit weights, and their scales.
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include "kernels/formats.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// A format of weights: bits of a code, columns of a byte, and the value of a code,
// code * kFactor - 1: sum w x = kFactor * sum code x - sum x. kFactor is 2^kShift.
struct Ternary {
  static constexpr int kBits = 2, kFactor = 1, kShift = 0, kColumns = 4;
};
struct Sign {
  static constexpr int kBits = 1, kFactor = 2, kShift = 1, kColumns = 8;
};

template <typename Format>
constexpr int kBlockColumns = kBlockBytes * Format::kColumns;

// The scales of eight rows from m on, of which fewer may exist.
inline F32x8 scales_of(const BitMatrix& w, int m) {
  return w.row_scales ? load_first(w.row_scales + m, w.m - m) : splat(w.scale);
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
