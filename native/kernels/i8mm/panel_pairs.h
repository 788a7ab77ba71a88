// Products of panels (neon/panel_gemm.h) by smmla: a vector holds eight columns of two rows, or of
// two tokens.
//
// Letters:  K input features   N tokens
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "kernels/neon/panel_gemm.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// The first eight bytes of a and of b, then their last eight.
YOCOBIT_INLINE void interleave(int8x16_t a, int8x16_t b, int8x16_t* out) {
  const int64x2_t first = vreinterpretq_s64_s8(a), second = vreinterpretq_s64_s8(b);
  out[0] = vreinterpretq_s8_s64(vzip1q_s64(first, second));
  out[1] = vreinterpretq_s8_s64(vzip2q_s64(first, second));
}

struct PanelPairs {
  static constexpr int kFewestTokens = 2, kRowPairs = kRowsPerGroup / 2;

  struct Inputs {
    alignas(64) int8_t pairs[kTokenBlock / 2][kUnpackedColumns / 8][16];

    void set(const Int8Rows& x, int token, int n, int column, int n_columns) {
      for (int t = 0; t < n; t += 2) {
        const int8_t* codes = x.codes + static_cast<size_t>(token + t) * x.stride + column;
        for (int k = 0; k < n_columns; k += 16) {
          int8x16_t both[2];
          interleave(vld1q_s8(codes + k),
                     t + 1 < n ? vld1q_s8(codes + x.stride + k) : vdupq_n_s8(0), both);
          for (int i = 0; i < 2; ++i) vst1q_s8(pairs[t / 2][k / 8 + i], both[i]);
        }
      }
    }
  };

  YOCOBIT_INLINE static void load(const uint8_t* codes, uint8x16_t* vectors) {
#pragma GCC unroll 4
    for (int r = 0; r < kRowPairs; ++r, codes += 2 * kBlockBytes) {
      int8x16_t both[2];
      interleave(as_signed(vld1q_u8(codes)), as_signed(vld1q_u8(codes + kBlockBytes)), both);
      vectors[r] = vreinterpretq_u8_s8(both[0]);
      vectors[kRowPairs + r] = vreinterpretq_u8_s8(both[1]);
    }
  }

  template <int kTokens>
  static void add(const int8_t* panel, int n_columns, const Inputs& inputs, int t,
                  TokenSums* totals) {
    constexpr int kPairs = kTokens / 2;
    int32x4_t sums[kPairs][kRowPairs];  // both tokens of a row, then of the next row
#pragma GCC unroll 4
    for (int i = 0; i < kPairs; ++i) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const int32x4_t first = vld1q_s32(totals[2 * i] + 4 * half);
        const int32x4_t second = vld1q_s32(totals[2 * i + 1] + 4 * half);
        sums[i][2 * half] = vzip1q_s32(first, second);
        sums[i][2 * half + 1] = vzip2q_s32(first, second);
      }
    }
    const int8_t* x = inputs.pairs[t / 2][0];
    for (int column = 0; column < n_columns; column += 8, panel += 8 * kRowsPerGroup, x += 16) {
      int8x16_t weights[kRowPairs];
#pragma GCC unroll 4
      for (int r = 0; r < kRowPairs; ++r) weights[r] = vld1q_s8(panel + 16 * r);
#pragma GCC unroll 4
      for (int i = 0; i < kPairs; ++i) {
        const int8x16_t xs = vld1q_s8(x + i * sizeof inputs.pairs[0]);
#pragma GCC unroll 4
        for (int r = 0; r < kRowPairs; ++r) sums[i][r] = vmmlaq_s32(sums[i][r], weights[r], xs);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kPairs; ++i) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const int32x4_t first = sums[i][2 * half], second = sums[i][2 * half + 1];
        vst1q_s32(totals[2 * i] + 4 * half, vuzp1q_s32(first, second));
        vst1q_s32(totals[2 * i + 1] + 4 * half, vuzp2q_s32(first, second));
      }
    }
  }
};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
