// GEMM with int8 and int4 weights, as output heads have them, on tiles, for at least kTileTokens
// tokens. Int16 activations are two operands: kPartWeight * part 0 + part 1.
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/amx/base.h"
#include "kernels/amx/tile_products.h"
#include "simd/target.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

constexpr int kStepColumns = 64;
static_assert(kStepColumns == kInt4Block);
constexpr int kSharedBytes = 512 << 10;  // of the parts of all tokens that are computed together
constexpr int kMaxColumns = kSharedBytes / (2 * kTileTokens);

// Rows of int16 activations as two int8 parts, in [-128, 127] and [0, 127].
struct Parts {
  alignas(64) int8_t codes[kSharedBytes];  // [tokens][2][stride]
  ptrdiff_t stride;
  int begin;  // token

  Parts(const Int16Rows& x, int begin, int end) : stride(x.stride), begin(begin) {
    typedef int16_t Shorts __attribute__((vector_size(64)));
    typedef int8_t Bytes __attribute__((vector_size(32)));
    for (int n = begin; n < end; ++n) {
      const int16_t* from = x.codes + n * stride;
      int8_t* to = codes + (n - begin) * 2 * stride;
      for (ptrdiff_t k = 0; k < stride; k += 32) {
        const auto codes = load_vector<Shorts>(from + k);
        store_vector(to + k, __builtin_convertvector(codes >> 7, Bytes));
        store_vector(to + stride + k, __builtin_convertvector(codes & 127, Bytes));
      }
    }
  }

  const int8_t* first(int n, int column) const { return codes + (n - begin) * 2 * stride + column; }

  static int n_together(const Int16Rows& x) {
    const int n = kSharedBytes / (2 * x.stride) / kTileTokens * kTileTokens;
    return at_most(n, kMaxTokens);
  }
};

// Columns [begin, end) of at most kStripRows rows of int8 weights as tiles. Rows that do not exist
// are as the last one; columns up to the end of a tile are 0.
inline void interleave_strip(const DenseMatrix& w, int row, int n_rows, int begin, int end,
                             uint8_t* weights) {
  for (int k = begin; k < end; k += kStepColumns) {
    const int n_bytes = at_most(end - k, kStepColumns);
    for (int tile = 0; tile < 2; ++tile, weights += kTileBytes<kStepColumns>) {
      Ints rows[kTileRows], columns[kTileRows];
      for (int r = 0; r < kTileRows; ++r) {
        const ptrdiff_t index = row + at_most(tile * kTileRows + r, n_rows - 1);
        const int8_t* from = static_cast<const int8_t*>(w.values) + index * w.k + k;
        if (n_bytes == kStepColumns) {
          rows[r] = load_vector<Ints>(from);
        } else {
          rows[r] = Ints{};
          std::memcpy(&rows[r], from, n_bytes);
        }
      }
      transpose_square(rows, columns);
      for (int c = 0; c < kTileRows; ++c) store_vector(weights + 64 * c, columns[c]);
    }
  }
}

// Outputs of the tile of tokens from the n-th on: sums of both parts, which doubles hold exactly.
inline void write_int8(const TileSums& sums, const Int16Rows& x, const float* scales, int n_rows,
                       int n, float* y, ptrdiff_t y_stride) {
  typedef int32_t HalfInts __attribute__((vector_size(32)));
  typedef double Doubles __attribute__((vector_size(64)));
  typedef float HalfFloats __attribute__((vector_size(32)));
  for (int t = 0; t < kTileTokens; ++t, ++n, y += y_stride) {
    for (int row = 0; row < kStripRows; row += 8) {
      const auto part = [&](int i) {
        const int32_t* from = sums.values[i][row / kTileRows] + t * kTileRows + row % kTileRows;
        return __builtin_convertvector(load_vector<HalfInts>(from), Doubles);
      };
      const Doubles sum = part(0) * static_cast<double>(kPartWeight) + part(1);
      const HalfFloats scale = load_vector<HalfFloats>(scales + row) * x.scales[n];
      store_first(y + row, __builtin_convertvector(sum, HalfFloats) * scale, n_rows - row);
    }
  }
}

// int32 budget: a sum of one part gets at most 128 * 128 for each of kMaxColumns columns, 2^28.
inline void int8_strip(const DenseMatrix& w, const Int16Rows& x, const Parts& parts, int row,
                       int n_rows, int begin, int end, float* y, ptrdiff_t y_stride) {
  const int n_tiles = tiles_of(begin, end);
  alignas(64) uint8_t weights[kPassBytes];
  TileSums sums[kMaxTiles];
  for (int column = 0; column < w.k; column += kPassColumns) {
    const int column_end = at_most(w.k, column + kPassColumns);
    interleave_strip(w, row, n_rows, column, column_end, weights);
    const ptrdiff_t next_row = column_end < w.k ? row : row + kStripRows;
    NextCodes<kStepColumns> next = {
        .codes = static_cast<const uint8_t*>(w.values) + next_row * w.k + column_end % w.k,
        .stride = w.k,
        .n_streams = n_rows};
    const int n_steps = (column_end - column + kStepColumns - 1) / kStepColumns;
    for (int tile = 0; tile < n_tiles; ++tile, next.n_streams = 0) {
      const int8_t* first = parts.first(first_token(tile, begin, end), column);
      multiply_tiles<kStepColumns, true, false>(first, first + parts.stride, 2 * parts.stride,
                                                weights, n_steps, column == 0, next, sums[tile]);
    }
  }
  alignas(64) float scales[kStripRows] = {};
  for (int i = 0; i < n_rows; ++i) scales[i] = w.scales[row + i];
  for (int tile = 0; tile < n_tiles; ++tile) {
    const int n = first_token(tile, begin, end);
    write_int8(sums[tile], x, scales, n_rows, n, y + n * y_stride + row, y_stride);
  }
}

void int8_gemm(const DenseMatrix& w, const Int16Rows& x, int row_begin, int row_end, float* y,
               ptrdiff_t y_stride) {
  if (x.n < kTileTokens || x.stride > kMaxColumns) {
    return resolved_base.kernels.int8_gemm(w, x, row_begin, row_end, y, y_stride);
  }
  const TileScope tiles(TileConfig{});
  for_tokens(x.n, Parts::n_together(x), [&](int begin, int end) {
    const Parts parts(x, begin, end);
    for (int row = row_begin; row < row_end; row += kStripRows) {
      int8_strip(w, x, parts, row, at_most(row_end - row, kStripRows), begin, end, y, y_stride);
    }
  });
}

// totals [kTileTokens][kStripRows] += scale * (sum - 8 * sum of the inputs) of one block.
inline void add_int4_block(const TileSums& sums, const int32_t* input_sums, ptrdiff_t sums_stride,
                           const float* scales, float* totals) {
  const Floats scale[2] = {load_vector<Floats>(scales), load_vector<Floats>(scales + kTileRows)};
  for (int t = 0; t < kTileTokens; ++t, input_sums += sums_stride, totals += kStripRows) {
#pragma GCC unroll 2
    for (int tile = 0; tile < 2; ++tile) {
      const Ints high = load_vector<Ints>(sums.values[0][tile] + t * kTileRows);
      const Ints low = load_vector<Ints>(sums.values[1][tile] + t * kTileRows);
      const Ints sum = high * kPartWeight + low - 8 * *input_sums;
      float* total = totals + tile * kTileRows;
      store_vector(total, fused(__builtin_convertvector(sum, Floats), scale[tile],
                                load_vector<Floats>(total)));
    }
  }
}

// int32 budget: the sum of a block is at most 15 * 16383 * 64, below 2^24, before and after the
// zero-point correction.
inline void int4_strip(const Int4Matrix& w, const Int16Rows& x, const Parts& parts, int group,
                       int n_groups, int begin, int end, float* y, ptrdiff_t y_stride) {
  constexpr int kBlocks = kPassColumns / kInt4Block, kGroupBlockBytes = kRowsPerGroup * kBlockBytes;
  const ptrdiff_t group_bytes = ptrdiff_t{w.n_blocks} * kGroupBlockBytes;
  const ptrdiff_t blocks_per_row = x.stride / kInt4Block;
  const int n_tiles = tiles_of(begin, end);
  alignas(64) uint8_t weights[kPassBytes];
  alignas(64) float scales[kBlocks][kStripRows];
  alignas(64) float totals[kMaxTiles][kTileTokens][kStripRows];
  std::memset(totals, 0, n_tiles * sizeof totals[0]);
  TileSums sums;
  for (int block = 0; block < w.n_blocks; block += kBlocks) {
    const int n_blocks = at_most(w.n_blocks - block, kBlocks);
    const ptrdiff_t at = ptrdiff_t{group} * w.n_blocks + block;
    const uint8_t* codes = w.codes + at * kGroupBlockBytes;
    unpack_strip<4, kStepColumns, false>(codes, group_bytes, n_groups, n_blocks, weights);
    for (int i = 0; i < n_blocks; ++i) {
      load_scales(w.scales + (at + i) * kRowsPerGroup, ptrdiff_t{w.n_blocks} * kRowsPerGroup,
                  n_groups, scales[i]);
    }
    const bool is_last = block + n_blocks == w.n_blocks;
    NextCodes<kGroupBlockBytes> next = {
        .codes = is_last ? w.codes + (group + kStripGroups) * group_bytes
                         : codes + ptrdiff_t{n_blocks} * kGroupBlockBytes,
        .stride = group_bytes,
        .n_streams = kStripGroups};
    for (int tile = 0; tile < n_tiles; ++tile, next.n_streams = 0) {
      const int n = first_token(tile, begin, end);
      const int8_t* first = parts.first(n, block * kInt4Block);
      for (int i = 0; i < n_blocks; ++i, first += kInt4Block) {
        multiply_tiles<kStepColumns, false, false>(first, first + parts.stride, 2 * parts.stride,
                                                   weights + i * 2 * kTileBytes<kStepColumns>, 1,
                                                   true, next, sums);
        add_int4_block(sums, x.sums + n * blocks_per_row + block + i, blocks_per_row, scales[i],
                       totals[tile][0]);
      }
    }
  }
  const int row = group * kRowsPerGroup, n_rows = at_most(n_groups * kRowsPerGroup, w.m - row);
  for (int tile = 0; tile < n_tiles; ++tile) {
    int n = first_token(tile, begin, end);
    for (int t = 0; t < kTileTokens; ++t, ++n) {
      for (int i = 0; i < kStripRows; i += kTileRows) {
        store_first(y + n * y_stride + row + i,
                    load_vector<Floats>(totals[tile][t] + i) * x.scales[n], n_rows - i);
      }
    }
  }
}

void int4_gemm(const Int4Matrix& w, const Int16Rows& x, int group_begin, int group_end, float* y,
               ptrdiff_t y_stride) {
  if (x.n < kTileTokens || x.stride > kMaxColumns) {
    return resolved_base.kernels.int4_gemm(w, x, group_begin, group_end, y, y_stride);
  }
  const TileScope tiles(TileConfig{});
  for_tokens(x.n, Parts::n_together(x), [&](int begin, int end) {
    const Parts parts(x, begin, end);
    for (int group = group_begin; group < group_end; group += kStripGroups) {
      int4_strip(w, x, parts, group, at_most(group_end - group, kStripGroups), begin, end, y,
                 y_stride);
    }
  });
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
