// The codes of 1-bit and 1.58-bit weights, and their scales.
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <cstddef>
#include <cstdint>

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

// The rows of a group are read in passes. Each prefetches its share of a group at least
// kPrefetchBytes ahead: the lines of all passes together are adjacent, those of one pass are not.
class GroupPrefetcher {
 public:
  GroupPrefetcher(const BitMatrix& w, int group, int first_row) {
    const size_t group_bytes = static_cast<size_t>(w.n_blocks) * kRowsPerGroup * kBlockBytes;
    const size_t n_ahead = (kPrefetchBytes + group_bytes - 1) / group_bytes;
    next_ = w.codes + (group + n_ahead) * group_bytes +
            static_cast<size_t>(w.n_blocks) * first_row * kBlockBytes;
    fits_in_l1_ = group_bytes <= kMostInL1;
  }

  // The share of one block of kRows rows.
  template <int kRows>
  YOCOBIT_INLINE void prefetch() {
    for (int line = 0; line < kRows * kBlockBytes; line += kCacheLine) {
      if (fits_in_l1_) {
        __builtin_prefetch(next_ + line);
      } else {
        __builtin_prefetch(next_ + line, 0, 2);  // L2
      }
    }
    next_ += kRows * kBlockBytes;
  }

 private:
  static constexpr size_t kMostInL1 = 8192;  // with the group before it and the activations

  const uint8_t* next_;
  bool fits_in_l1_;
};

// The scales of eight rows from m on, of which fewer may exist.
inline F32x8 scales_of(const BitMatrix& w, int m) {
  return w.row_scales ? load_first(w.row_scales + m, w.m - m) : splat(w.scale);
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
