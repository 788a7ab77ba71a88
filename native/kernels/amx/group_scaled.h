// GEMM of group-scaled weights by grouped activations on tiles, for at least kTileTokens tokens. A
// step is one activation group, so that its sums are exact and scaled in the order of the contract.
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/amx/base.h"
#include "kernels/amx/tile_products.h"
#include "kernels/generic/group_scaled_gemm-inl.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// Operands of activations have rows of kActivationGroup bytes; those of weights a quarter as many
// rows.
constexpr TileConfig group_tiles() {
  TileConfig config;
  for (const int tile : {4, 5}) config.set(tile, kTileTokens, kActivationGroup);
  for (const int tile : {6, 7}) config.set(tile, kActivationGroup / 4, kMaxTileBytes);
  return config;
}
alignas(64) constexpr TileConfig kGroupTiles = group_tiles();

// Of one tile of tokens by a strip of rows.
using StripFloats = float[kTileTokens][kStripRows];

// t = fma(x_scale, sum, t) of one activation group. `last` has the sums of the last part.
template <typename Format, int kParts>
void add_activation_group(const TileSums& sums, int last, const GroupedRows& x, ptrdiff_t at,
                          StripFloats& parts) {
  const ptrdiff_t x_groups = x.stride / kActivationGroup;
  for (int t = 0; t < kTileTokens; ++t, at += x_groups) {
    const int32_t offset = -Format::kFirst * x.sums[at];
    const float scale = x.scales[at];
#pragma GCC unroll 2
    for (int tile = 0; tile < 2; ++tile) {
      Ints sum = load_vector<Ints>(sums.values[last][tile] + t * kTileRows);
      if constexpr (kParts == 2) {
        sum += load_vector<Ints>(sums.values[0][tile] + t * kTileRows) * kPartWeight;
      }
      sum = sum * Format::kStep + offset;
      float* part = parts[t] + tile * kTileRows;
      store_vector(part, fused(splat_floats(scale), __builtin_convertvector(sum, Floats),
                               load_vector<Floats>(part)));
    }
  }
}

// total = fma(scale, t, total), t = 0, at the end of a weight group.
inline void add_weight_group(const float* scales, StripFloats& parts, StripFloats& totals) {
  for (int i = 0; i < kStripRows; i += kTileRows) {
    const auto scale = load_vector<Floats>(scales + i);
    for (int t = 0; t < kTileTokens; ++t) {
      float *part = parts[t] + i, *total = totals[t] + i;
      store_vector(total, fused(scale, load_vector<Floats>(part), load_vector<Floats>(total)));
      store_vector(part, Floats{});
    }
  }
}

// At most kStripGroups groups by tokens [begin, end).
//
// int32 budget: the sum of an activation group is at most 3 * 32 * 16384, below 2^21, in two parts;
// twice that and an offset of at most 3 * 32 * 16383 stay below 2^23.
template <typename Format, int kParts>
void group_scaled_strip(const GroupScaledMatrix& w, const GroupedRows& x, int group, int n_groups,
                        int begin, int end, float* y, ptrdiff_t y_stride) {
  constexpr int kBlockSteps = Format::kFields,
                kBlocks = kPassColumns / kActivationGroup / kBlockSteps;
  constexpr int kGroupBlockBytes = kRowsPerGroup * kBlockBytes;
  constexpr int kScales = kPassColumns / 64;  // weight groups of a pass
  const ptrdiff_t group_bytes = ptrdiff_t{w.n_blocks} * kGroupBlockBytes;
  const int columns = w.n_blocks * kBlockSteps * kActivationGroup;
  const int steps_per_scale = w.group_columns / kActivationGroup;
  const ptrdiff_t n_scales = w.scales ? columns / w.group_columns : 0;
  const int n_tiles = tiles_of(begin, end);
  const int row = group * kRowsPerGroup, n_rows = at_most(n_groups * kRowsPerGroup, w.m - row);
  alignas(64) uint8_t weights[kPassBytes];
  alignas(64) float scales[kScales][kStripRows] = {};  // [0]: also row scales
  alignas(64) StripFloats parts[kMaxTiles], totals[kMaxTiles];
  std::memset(parts, 0, n_tiles * sizeof parts[0]);
  std::memset(totals, 0, n_tiles * sizeof totals[0]);
  TileSums sums;
  for (int block = 0; block < w.n_blocks; block += kBlocks) {
    const int n_blocks = at_most(w.n_blocks - block, kBlocks);
    const int first_step = block * kBlockSteps, n_steps = n_blocks * kBlockSteps;
    const uint8_t* codes = w.codes + group * group_bytes + ptrdiff_t{block} * kGroupBlockBytes;
    unpack_strip<Format::kBits, kActivationGroup, true>(codes, group_bytes, n_groups, n_blocks,
                                                        weights);
    for (int i = 0; w.scales && i < n_steps / steps_per_scale; ++i) {
      const ptrdiff_t at = group * n_scales + first_step / steps_per_scale + i;
      load_scales(w.scales + at * kRowsPerGroup, n_scales * kRowsPerGroup, n_groups, scales[i]);
    }
    const bool is_last = block + n_blocks == w.n_blocks;
    NextCodes<kGroupBlockBytes / kBlockSteps> next = {
        .codes = is_last ? w.codes + (group + kStripGroups) * group_bytes
                         : codes + ptrdiff_t{n_blocks} * kGroupBlockBytes,
        .stride = group_bytes,
        .n_streams = kStripGroups};
    constexpr int kTokenTiles = 2 / kParts;  // that are computed together
    for (int tile = 0; tile < n_tiles; tile += kTokenTiles, next.n_streams = 0) {
      const int n_together = at_most(kTokenTiles, n_tiles - tile);
      const int n[2] = {first_token(tile, begin, end),
                        first_token(tile + kTokenTiles - 1, begin, end)};
      const auto inputs = [&](int i) {
        return x.codes + (ptrdiff_t{n[i]} * kParts + i * (kParts - 1)) * x.stride +
               first_step * kActivationGroup;
      };
      const int8_t *first = inputs(0), *second = inputs(1);
      const uint8_t* of_step = weights;
      int step_of_scale = 0;
      float* scale = scales[0];
      for (int i = 0; i < n_steps; ++i) {
        multiply_tiles<kActivationGroup, false, false>(first, second, ptrdiff_t{kParts} * x.stride,
                                                       of_step, 1, true, next, sums);
        first += kActivationGroup;
        second += kActivationGroup;
        of_step += 2 * kTileBytes<kActivationGroup>;
        const bool ends_weight_group = w.scales && ++step_of_scale == steps_per_scale;
        for (int j = 0; j < n_together; ++j) {
          const ptrdiff_t at = ptrdiff_t{n[j]} * (x.stride / kActivationGroup) + first_step + i;
          add_activation_group<Format, kParts>(sums, kParts == 2 ? 1 : j, x, at, parts[tile + j]);
          if (ends_weight_group) add_weight_group(scale, parts[tile + j], totals[tile + j]);
        }
        if (!ends_weight_group) continue;
        scale += kStripRows;
        step_of_scale = 0;
      }
    }
  }
  if (!w.scales) std::memcpy(scales[0], w.row_scales + row, n_rows * sizeof(float));
  for (int tile = 0; tile < n_tiles; ++tile) {
    float* to = y + first_token(tile, begin, end) * y_stride + row;
    for (int t = 0; t < kTileTokens; ++t, to += y_stride) {
      for (int i = 0; i < kStripRows; i += kTileRows) {
        const auto product =
            load_vector<Floats>(scales[0] + i) * load_vector<Floats>(parts[tile][t] + i);
        store_first(to + i, w.scales ? load_vector<Floats>(totals[tile][t] + i) : product,
                    n_rows - i);
      }
    }
  }
}

template <typename Format, int kParts>
void group_scaled_tiles(const GroupScaledMatrix& w, const GroupedRows& x, int group_begin,
                        int group_end, float* y, ptrdiff_t y_stride) {
  const TileScope tiles(kGroupTiles);
  for_tokens(x.n, kMaxTokens, [&](int begin, int end) {
    for (int group = group_begin; group < group_end; group += kStripGroups) {
      group_scaled_strip<Format, kParts>(w, x, group, at_most(group_end - group, kStripGroups),
                                         begin, end, y, y_stride);
    }
  });
}

void multiply_group_scaled(const GroupScaledMatrix& w, const GroupedRows& x, int group_begin,
                           int group_end, float* y, ptrdiff_t y_stride) {
  if (x.n < kTileTokens) {
    return resolved_base.kernels.group_scaled_gemm(w, x, group_begin, group_end, y, y_stride);
  }
  with_format(w, [&]<typename Format>(Format) {
    const auto gemm =
        x.n_parts == 1 ? group_scaled_tiles<Format, 1> : group_scaled_tiles<Format, 2>;
    gemm(w, x, group_begin, group_end, y, y_stride);
  });
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
