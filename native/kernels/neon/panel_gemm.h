// GEMM with ternary and sign weights for two tokens and more: the codes of some columns of a group
// are unpacked once for all tokens of a tile, into a panel in the order that products take them in.
//
// Products are those of a type of the family. Eight columns of a group are 64 bytes of a panel.
//   load(codes, vectors)       16 bytes of each row of a block, as 8 vectors in the order of panels
//   Inputs                     the activations of a tile: set(x, token, n, column, n_columns)
//   kFewestTokens              1 or 2
//   add<kTokens>(panel, n_columns, inputs, t, totals)
//     totals[i][r] += sum over columns of code[r] * x[t + i] for kTokens tokens, 8, 4, 2 or fewest;
//     those that are not among the n of the tile are zeros
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "kernels/generic/low_bit-inl.h"
#include "kernels/neon/dots.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

constexpr int kUnpackedColumns = 1024;  // 8 KB of codes and up to 32 KB of activations
constexpr int kPanelGroups = 32;        // 32 KB of sums

using TokenSums = int32_t[kRowsPerGroup];  // of a group

// Outputs of a group for one token, from the sums of code * x.
template <typename Format>
void write_token(const TokenSums& sums, const BitMatrix& w, const Int8Rows& x, int group, int n,
                 float* y) {
  const int m = group * kRowsPerGroup;
  TokenSums products;
  for (int r = 0; r < kRowsPerGroup; ++r) products[r] = Format::kFactor * sums[r] - x.sums[n];
  const F32x8 scales = mul(splat(x.scales[n]), scales_of(w, m));
  store_first(y + m, mul(from_int32(products), scales), w.m - m);
}

template <typename Format, typename Products>
void unpack(const uint8_t* codes, int n_blocks, int8_t* panel) {
  const uint8x16_t mask = vdupq_n_u8((1 << Format::kBits) - 1);
  for (int block = 0; block < n_blocks; ++block, codes += kRowsPerGroup * kBlockBytes) {
#pragma GCC unroll 4
    for (int byte = 0; byte < kRowsPerGroup * kBlockBytes; byte += kCacheLine) {
      __builtin_prefetch(codes + byte + kPrefetchBytes);
    }
    for (int column = 0; column < kBlockBytes; column += 16) {
      uint8x16_t vectors[kRowsPerGroup];
      Products::load(codes + column, vectors);
#pragma GCC unroll 8
      for (int f = 0; f < Format::kColumns; ++f) {
        int8_t* to = panel + (f * kBlockBytes + column) * kRowsPerGroup;
#pragma GCC unroll 8
        for (int i = 0; i < kRowsPerGroup; ++i) {
          vst1q_s8(to + 16 * i, as_signed(vandq_u8(vectors[i], mask)));
          vectors[i] = vshrq_n_u8(vectors[i], Format::kBits);
        }
      }
    }
    panel += kBlockColumns<Format> * kRowsPerGroup;
  }
}

// n <= kTokenBlock tokens by at most kPanelGroups groups.
//
// int32 budget: products of a code (<= 3, if a file is corrupt) and an activation are at most 381;
// 2^22 columns stay below 2^31.
template <typename Format, typename Products>
void panel_tile(const BitMatrix& w, const Int8Rows& x, int token, int n, int group_begin,
                int group_end, float* y, ptrdiff_t y_stride) {
  constexpr int kBlocks = kUnpackedColumns / kBlockColumns<Format>;
  alignas(64) int8_t panel[kUnpackedColumns * kRowsPerGroup];
  alignas(64) TokenSums totals[kPanelGroups][kTokenBlock] = {};
  typename Products::Inputs inputs;
  for (int block = 0; block < w.n_blocks; block += kBlocks) {
    const int n_blocks = w.n_blocks - block < kBlocks ? w.n_blocks - block : kBlocks;
    const int n_columns = n_blocks * kBlockColumns<Format>;
    inputs.set(x, token, n, block * kBlockColumns<Format>, n_columns);
    for (int group = group_begin; group < group_end; ++group) {
      const size_t at = (static_cast<size_t>(group) * w.n_blocks + block) * kRowsPerGroup;
      unpack<Format, Products>(w.codes + at * kBlockBytes, n_blocks, panel);
      int t = 0;
      const auto add = [&]<int kTokens>() {
        for (; t + kTokens <= n; t += kTokens) {
          Products::template add<kTokens>(panel, n_columns, inputs, t,
                                          totals[group - group_begin] + t);
        }
      };
      add.template operator()<8>();
      add.template operator()<4>();
      add.template operator()<2>();
      if (t < n) {
        Products::template add<Products::kFewestTokens>(panel, n_columns, inputs, t,
                                                        totals[group - group_begin] + t);
      }
    }
  }
  for (int group = group_begin; group < group_end; ++group) {
    for (int t = 0; t < n; ++t) {
      write_token<Format>(totals[group - group_begin][t], w, x, group, token + t,
                          y + (token + t) * y_stride);
    }
  }
}

// All tokens from the given one on by the groups.
template <typename Format, typename Products>
void panel_gemm(const BitMatrix& w, const Int8Rows& x, int token, int group_begin, int group_end,
                float* y, ptrdiff_t y_stride) {
  for (; token < x.n; token += kTokenBlock) {
    const int n = x.n - token < kTokenBlock ? x.n - token : kTokenBlock;
    for (int group = group_begin; group < group_end; group += kPanelGroups) {
      const int end = group_end - group < kPanelGroups ? group_end : group + kPanelGroups;
      panel_tile<Format, Products>(w, x, token, n, group, end, y, y_stride);
    }
  }
}

// By sdot: a vector holds four columns of four rows.
struct PanelDots {
  static constexpr int kFewestTokens = 1;

  struct Inputs {
    const int8_t* codes;
    ptrdiff_t stride;

    void set(const Int8Rows& x, int token, int, int column, int) {
      codes = x.codes + static_cast<size_t>(token) * x.stride + column;
      stride = x.stride;
    }
  };

  YOCOBIT_INLINE static void load(const uint8_t* codes, uint8x16_t* vectors) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half, codes += 4 * kBlockBytes) {
      float32x4_t rows[4];
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) rows[r] = vreinterpretq_f32_u8(vld1q_u8(codes + r * kBlockBytes));
      transpose_fours(rows);
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) vectors[2 * c + half] = vreinterpretq_u8_f32(rows[c]);
    }
  }

  template <int kTokens>
  static void add(const int8_t* panel, int n_columns, const Inputs& inputs, int t,
                  TokenSums* totals) {
    int32x4_t sums[kTokens][2];
#pragma GCC unroll 8
    for (int i = 0; i < kTokens; ++i) {
      sums[i][0] = vld1q_s32(totals[i]);
      sums[i][1] = vld1q_s32(totals[i] + 4);
    }
    const int8_t* x = inputs.codes + t * inputs.stride;
    for (int column = 0; column < n_columns; column += 16, panel += 16 * kRowsPerGroup, x += 16) {
      int8x16_t weights[kRowsPerGroup];
#pragma GCC unroll 8
      for (int i = 0; i < kRowsPerGroup; ++i) weights[i] = vld1q_s8(panel + 16 * i);
#pragma GCC unroll 8
      for (int i = 0; i < kTokens; ++i) {
        const int8x16_t xs = vld1q_s8(x + i * inputs.stride);
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          int32x4_t& sum = sums[i][half];
          sum = vdotq_laneq_s32(sum, weights[half], xs, 0);
          sum = vdotq_laneq_s32(sum, weights[2 + half], xs, 1);
          sum = vdotq_laneq_s32(sum, weights[4 + half], xs, 2);
          sum = vdotq_laneq_s32(sum, weights[6 + half], xs, 3);
        }
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kTokens; ++i) {
      vst1q_s32(totals[i], sums[i][0]);
      vst1q_s32(totals[i] + 4, sums[i][1]);
    }
  }
};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
