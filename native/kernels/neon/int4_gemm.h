// GEMM with int4 weights, as output heads have them, over the two int8 parts of int16 activations.
//
// Products are those of a type of the family:
//   Inputs                     a block of one token's activations, prepared by split(x, inputs)
//   rows<kTokens>(codes, inputs, sums)
//     sums[t] = sum in the block of code * x[t], of four rows of a group
//   kMostTokens                of a tile
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "kernels/neon/dots.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// By sdot.
struct Int4Dots {
  static constexpr int kMostTokens = 1;  // whose parts fit into the registers
  static constexpr int kVectors = kInt4Block / 16;
  using Inputs = Parts[kVectors];

  YOCOBIT_INLINE static void split(const int16_t* x, Inputs& inputs) {
    for (int i = 0; i < kVectors; ++i) inputs[i] = YOCOBIT_TARGET::split(x + 16 * i);
  }

  template <int kTokens>
  YOCOBIT_INLINE static void rows(const uint8_t* codes, const Inputs* xs, int32x4_t* sums) {
    int32x4_t rows[kTokens][4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r, codes += kBlockBytes) {
      const uint8x16_t packed[] = {vld1q_u8(codes), vld1q_u8(codes + 16)};
      int8x16_t weights[kVectors];
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        weights[i] = as_signed(vandq_u8(packed[i], vdupq_n_u8(15)));
        weights[i + 2] = as_signed(vshrq_n_u8(packed[i], 4));
      }
#pragma GCC unroll 2
      for (int t = 0; t < kTokens; ++t) {
        int32x4_t high = vdupq_n_s32(0), low = vdupq_n_s32(0);
#pragma GCC unroll 4
        for (int i = 0; i < kVectors; ++i) {
          high = vdotq_s32(high, weights[i], xs[t][i].high);
          low = vdotq_s32(low, weights[i], xs[t][i].low);
        }
        rows[t][r] = joined(high, low);
      }
    }
#pragma GCC unroll 2
    for (int t = 0; t < kTokens; ++t) sums[t] = lane_sums(rows[t]);
  }
};

// The eight rows of a group by kTokens tokens. sum (code - 8) x = sum code x - 8 sum x.
template <typename Products, int kTokens>
void int4_tile(const Int4Matrix& w, const Int16Rows& x, int group, int n, float* y,
               ptrdiff_t y_stride) {
  const int blocks_per_row = x.stride / kInt4Block;
  F32x8 totals[kTokens];
  for (F32x8& total : totals) total = zero();
  for (int block = 0; block < w.n_blocks; ++block) {
    const size_t at = (static_cast<size_t>(group) * w.n_blocks + block) * kRowsPerGroup;
    const uint8_t* codes = w.codes + at * kBlockBytes;
    for (int byte = 0; byte < kRowsPerGroup * kBlockBytes; byte += kCacheLine) {
      __builtin_prefetch(codes + byte + kPrefetchBytes);
    }
    typename Products::Inputs xs[kTokens];
    for (int t = 0; t < kTokens; ++t) {
      Products::split(x.codes + static_cast<size_t>(n + t) * x.stride + block * kInt4Block, xs[t]);
    }
    int32x4_t first[kTokens], last[kTokens];
    Products::template rows<kTokens>(codes, xs, first);
    Products::template rows<kTokens>(codes + 4 * kBlockBytes, xs, last);
    const F32x8 scales = load_f16(w.scales + at);
    for (int t = 0; t < kTokens; ++t) {
      const int32x4_t offset =
          vdupq_n_s32(8 * x.sums[static_cast<size_t>(n + t) * blocks_per_row + block]);
      const F32x8 sums = {vcvtq_f32_s32(vsubq_s32(first[t], offset)),
                          vcvtq_f32_s32(vsubq_s32(last[t], offset))};
      totals[t] = fma(sums, scales, totals[t]);
    }
  }
  const int m = group * kRowsPerGroup;
  for (int t = 0; t < kTokens; ++t) {
    store_first(y + (n + t) * y_stride + m, mul(totals[t], splat(x.scales[n + t])), w.m - m);
  }
}

template <typename Products>
void int4_gemm(const Int4Matrix& w, const Int16Rows& x, int group_begin, int group_end, float* y,
               ptrdiff_t y_stride) {
  constexpr int kTokens = Products::kMostTokens;  // 1 or 2
  for (int group = group_begin; group < group_end; ++group) {
    int n = 0;
    for (; n + kTokens <= x.n; n += kTokens) {
      int4_tile<Products, kTokens>(w, x, group, n, y, y_stride);
    }
    if (n < x.n) int4_tile<Products, 1>(w, x, group, n, y, y_stride);
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
