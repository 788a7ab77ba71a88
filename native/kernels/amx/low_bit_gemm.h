// GEMM with ternary and sign weights on tiles, for at least kTileTokens tokens.
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/amx/base.h"
#include "kernels/amx/tile_products.h"
#include "kernels/generic/low_bit-inl.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// Outputs of the tile of tokens from the n-th on, by n_rows rows from `row` on. The sums of all
// columns are `first`, or first plus second.
template <typename Format>
void write_low_bit(const int32_t (&first)[2][kTileSums], const int32_t (*second)[kTileSums],
                   const Int8Rows& x, const float* scales, int row, int n_rows, int n, float* y,
                   ptrdiff_t y_stride) {
  y += n * y_stride + row;
  for (int t = 0; t < kTileTokens; ++t, ++n, y += y_stride) {
    for (int tile = 0; tile < 2; ++tile) {
      Ints sum = load_vector<Ints>(first[tile] + t * kTileRows);
      if (second) sum += load_vector<Ints>(second[tile] + t * kTileRows);
      const Ints product = sum * Format::kFactor - x.sums[n];
      const Floats scale = load_vector<Floats>(scales + tile * kTileRows) * x.scales[n];
      store_first(y + tile * kTileRows, __builtin_convertvector(product, Floats) * scale,
                  n_rows - tile * kTileRows);
    }
  }
}

// At most kStripGroups groups by tokens [begin, end).
//
// int32 budget: a sum gets at most 3 * 127 for each column; below 2^22 columns that is less than
// 2^31.
template <typename Format>
void low_bit_strip(const BitMatrix& w, const Int8Rows& x, int group, int n_groups, int begin,
                   int end, float* y, ptrdiff_t y_stride) {
  constexpr int kColumns = 64, kSteps = kBlockColumns<Format> / kColumns;  // of a block
  constexpr int kBlocks = kPassColumns / kBlockColumns<Format>;
  constexpr int kGroupBlockBytes = kRowsPerGroup * kBlockBytes;
  const ptrdiff_t group_bytes = ptrdiff_t{w.n_blocks} * kGroupBlockBytes;
  const int n_tiles = tiles_of(begin, end);
  alignas(64) uint8_t weights[kPassBytes];
  TileSums sums[kMaxTiles / 2];
  for (int block = 0; block < w.n_blocks; block += kBlocks) {
    const int n_blocks = at_most(w.n_blocks - block, kBlocks);
    const bool is_last = block + n_blocks == w.n_blocks;
    const uint8_t* codes = w.codes + group * group_bytes + ptrdiff_t{block} * kGroupBlockBytes;
    unpack_strip<Format::kBits, kColumns, false>(codes, group_bytes, n_groups, n_blocks, weights);
    NextCodes<kGroupBlockBytes / kSteps> next = {
        .codes = is_last ? w.codes + (group + kStripGroups) * group_bytes
                         : codes + ptrdiff_t{n_blocks} * kGroupBlockBytes,
        .stride = group_bytes,
        .n_streams = kStripGroups};
    for (int tile = 0; tile < n_tiles; tile += 2, next.n_streams = 0) {
      const auto inputs = [&](int i) {
        return x.codes + ptrdiff_t{first_token(i, begin, end)} * x.stride +
               block * kBlockColumns<Format>;
      };
      if (tile + 1 < n_tiles) {
        multiply_tiles<kColumns, false, false>(inputs(tile), inputs(tile + 1), x.stride, weights,
                                               n_blocks * kSteps, block == 0, next, sums[tile / 2]);
      } else {
        multiply_tiles<kColumns, false, true>(inputs(tile), inputs(tile) + kColumns, x.stride,
                                              weights, n_blocks * kSteps, block == 0, next,
                                              sums[tile / 2]);
      }
    }
  }
  const int row = group * kRowsPerGroup;
  const int n_rows = at_most(n_groups * kRowsPerGroup, w.m - row);
  alignas(64) float scales[kStripRows] = {};
  for (int i = 0; i < n_rows; ++i) scales[i] = scale_of(w, row + i);
  for (int tile = 0; tile < n_tiles; ++tile) {
    const auto& [first, second] = sums[tile / 2].values;
    const bool is_split = tile % 2 == 0 && tile + 1 == n_tiles;
    write_low_bit<Format>(tile % 2 ? second : first, is_split ? second : nullptr, x, scales, row,
                          n_rows, first_token(tile, begin, end), y, y_stride);
  }
}

template <typename Format>
void low_bit_tiles(const BitMatrix& w, const Int8Rows& x, int group_begin, int group_end, float* y,
                   ptrdiff_t y_stride) {
  const TileScope tiles(TileConfig{});
  for_tokens(x.n, kMaxTokens, [&](int begin, int end) {
    for (int group = group_begin; group < group_end; group += kStripGroups) {
      low_bit_strip<Format>(w, x, group, at_most(group_end - group, kStripGroups), begin, end, y,
                            y_stride);
    }
  });
}

void ternary_gemm(const BitMatrix& w, const Int8Rows& x, int group_begin, int group_end, float* y,
                  ptrdiff_t y_stride) {
  const auto gemm = x.n < kTileTokens ? resolved_base.kernels.ternary_gemm : low_bit_tiles<Ternary>;
  gemm(w, x, group_begin, group_end, y, y_stride);
}

void sign_gemm(const BitMatrix& w, const Int8Rows& x, int group_begin, int group_end, float* y,
               ptrdiff_t y_stride) {
  const auto gemm = x.n < kTileTokens ? resolved_base.kernels.sign_gemm : low_bit_tiles<Sign>;
  gemm(w, x, group_begin, group_end, y, y_stride);
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
