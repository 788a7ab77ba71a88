// GEMV with ternary and sign weights: sdot over codes as they are stored.
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "kernels/generic/low_bit-inl.h"
#include "kernels/neon/dots.h"
#include "kernels/neon/panel_gemm.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

constexpr int kGroupBytes = kRowsPerGroup * kBlockBytes;  // of a block

// int32 budget: a lane adds 4 products of a code in its bit field of a nibble (at most 12) and an
// activation for every 16 columns; below 2^22 columns that is less than 2^31.
//
// GEMV: the sums of kRows rows of a group. Codes stay in their bit fields of the nibbles; each
// field has sums of its own, shifted down at the end.
template <typename Format, int kRows>
void gemv_rows(const uint8_t* codes, GroupPrefetcher next, int n_blocks, const int8_t* inputs,
               int32_t* sums) {
  constexpr int kFields = 4 / Format::kBits, kMask = (1 << Format::kBits) - 1;
  int32x4_t totals[kFields][kRows];
  for (auto& field : totals) {
    for (int32x4_t& total : field) total = vdupq_n_s32(0);
  }
  for (int block = 0; block < n_blocks; ++block, codes += kGroupBytes) {
    next.prefetch<kRows>();
    for (int column = 0; column < kBlockBytes; column += 16) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        int8x16_t xs[kFields];
#pragma GCC unroll 4
        for (int f = 0; f < kFields; ++f) {
          xs[f] = vld1q_s8(inputs + (half * kFields + f) * kBlockBytes + column);
        }
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const uint8x16_t bytes = vld1q_u8(codes + r * kBlockBytes + column);
          const uint8x16_t packed = half ? vshrq_n_u8(bytes, 4) : bytes;
#pragma GCC unroll 4
          for (int f = 0; f < kFields; ++f) {
            const uint8x16_t mask = vdupq_n_u8(static_cast<uint8_t>(kMask << f * Format::kBits));
            totals[f][r] = vdotq_s32(totals[f][r], as_signed(vandq_u8(packed, mask)), xs[f]);
          }
        }
      }
    }
    inputs += kBlockColumns<Format>;
  }
#pragma GCC unroll 4
  for (int f = 1; f < kFields; ++f) {
    const int32x4_t shift = vdupq_n_s32(-f * Format::kBits);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      totals[0][r] = vaddq_s32(totals[0][r], vshlq_s32(totals[f][r], shift));
    }
  }
  for (int r = 0; r < kRows; r += 4) vst1q_s32(sums + r, lane_sums(totals[0] + r));
}

template <typename Format>
void gemv_group(const BitMatrix& w, const Int8Rows& x, int group, int n, float* y) {
  constexpr int kRows = 4 * Format::kBits;  // 16 sums
  const uint8_t* codes = w.codes + static_cast<size_t>(group) * w.n_blocks * kGroupBytes;
  int32_t sums[kRowsPerGroup];
  for (int row = 0; row < kRowsPerGroup; row += kRows) {
    gemv_rows<Format, kRows>(codes + row * kBlockBytes, GroupPrefetcher(w, group, row), w.n_blocks,
                             x.codes + static_cast<size_t>(n) * x.stride, sums + row);
  }
  write_token<Format>(sums, w, x, group, n, y);
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
