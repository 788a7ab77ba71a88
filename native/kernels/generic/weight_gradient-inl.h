// Training, backward: the gradient of a weight, as a GEMM of int16 pairs.
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/generic/rounding-inl.h"
#include "kernels/training_kernels.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// A register tile: 24 sums and 4 operands of 32 registers, or 8 sums, 3 operands and a product.
constexpr int kPanelRows = kRegisters == 32 ? 8 : 4;
constexpr int kPanelVectors = kRegisters == 32 ? 3 : 2;
constexpr int kBlockPairs = kGradientBlock / 2;
constexpr int kPanelColumns = kPanelVectors * Int16Pairs::kLanes;
constexpr int kPanelsPerGroup = kRowsPerGroup / kPanelRows;
constexpr int kTileGroups = 32;  // whose codes stay in the second-level cache

// Output gradients of one group in a block of tokens, rounded to int16: pairs of tokens.
struct GroupCodes {
  int32_t pairs[kPanelsPerGroup][kBlockPairs][kPanelRows];
  float scales[kRowsPerGroup];
};

// n tokens of the rows [m, m + 8) that exist of a weight of M rows.
void round_group(const float* grads, int M, int m, const float* x_scales, int n,
                 GroupCodes* codes) {
  const auto value = [&](int t) {
    return mul(load_first(grads + static_cast<size_t>(t) * M + m, M - m), splat(x_scales[t]));
  };
  I32x8 largest_bits = splat_i32(0);
  for (int t = 0; t < n; ++t) largest_bits = max(largest_bits, magnitude_bits(value(t)));
  // 0, where a value is not finite: so are its codes.
  const F32x8 factor = round_rows(largest_bits, kSmallestGradient, kGradientLevels, codes->scales);
  for (int t = 0; t < n; t += 2) {
    const F32x8 second = t + 1 < n ? mul(value(t + 1), factor) : zero();
    alignas(32) int32_t pairs[kRowsPerGroup];
    store(pairs, int16_pairs(mul(value(t), factor), second));
    for (int panel = 0; panel < kPanelsPerGroup; ++panel) {
      __builtin_memcpy(codes->pairs[panel][t / 2], pairs + panel * kPanelRows,
                       kPanelRows * sizeof(int32_t));
    }
  }
}

// Rows x columns of a tile, summed over n_pairs, times scales, added to out [.][K].
void gradient_panel(const int32_t (*rows)[kPanelRows],
                    const Int16Pairs::Vector (*columns)[kPanelVectors], int n_pairs,
                    const float* scales, int n_rows, int n_columns, bool is_first, float* out,
                    int K) {
  Int16Pairs::Vector sums[kPanelRows][kPanelVectors];
  for (auto& row : sums) {
    for (auto& sum : row) sum = Int16Pairs::zero();
  }
  for (int pair = 0; pair < n_pairs; ++pair) {
#pragma GCC unroll 8
    for (int r = 0; r < kPanelRows; ++r) {
      const Int16Pairs::Vector row = Int16Pairs::splat(rows[pair][r]);
#pragma GCC unroll 4
      for (int v = 0; v < kPanelVectors; ++v)
        sums[r][v] = Int16Pairs::multiply_add(sums[r][v], row, columns[pair][v]);
    }
  }
  // A loop of its own, with constant indices: otherwise GCC keeps the sums in memory.
  float products[kPanelRows][kPanelColumns];
#pragma GCC unroll 8
  for (int r = 0; r < kPanelRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors; ++v) {
      Int16Pairs::store_floats(products[r] + v * Int16Pairs::kLanes, sums[r][v]);
    }
  }
  for (int r = 0; r < n_rows; ++r, out += K) {
    for (int k = 0; k < n_columns; k += kLanes) {
      const F32x8 before = is_first ? zero() : load_first(out + k, n_columns - k);
      const F32x8 product = mul(load(products[r] + k), splat(scales[r]));
      store_first(out + k, add(before, product), n_columns - k);
    }
  }
}

// Up to kTileGroups groups: the codes of a block of tokens are rounded once for all columns.
void weight_gradient_tile(const MasterWeights& p, const float* const* grads, const Int8Rows& x,
                          int begin, int end, float* const* grad_ws) {
  alignas(64) GroupCodes groups[kTileGroups];
  alignas(64) Int16Pairs::Vector columns[kBlockPairs][kPanelVectors];
  WeightRows first_rows[kTileGroups];
  for (int group = begin; group < end; ++group) first_rows[group - begin] = rows_of_group(p, group);
  for (int token = 0; token < x.n; token += kGradientBlock) {
    const int n = x.n - token < kGradientBlock ? x.n - token : kGradientBlock;
    const int n_pairs = (n + 1) / 2;
    for (int i = 0; i < end - begin; ++i) {
      const int M = p.weights[first_rows[i].weight].m;
      round_group(grads[first_rows[i].weight] + static_cast<size_t>(token) * M, M, first_rows[i].m,
                  x.scales + token, n, &groups[i]);
    }
    for (int k = 0; k < p.k; k += kPanelColumns) {
      for (int pair = 0; pair < n_pairs; ++pair) {
        const int8_t* row = x.codes + static_cast<size_t>(token + 2 * pair) * x.stride;
        const bool has_second = 2 * pair + 1 < n;
        for (int v = 0; v < kPanelVectors; ++v) {
          const int column = k + v * Int16Pairs::kLanes;
          columns[pair][v] = column < x.stride
                                 ? Int16Pairs::widened(
                                       row + column, has_second ? row + x.stride + column : nullptr)
                                 : Int16Pairs::zero();
        }
      }
      const int n_columns = p.k - k < kPanelColumns ? p.k - k : kPanelColumns;
      for (int i = 0; i < end - begin; ++i) {
        const int M = p.weights[first_rows[i].weight].m;
        for (int panel = 0; panel < kPanelsPerGroup; ++panel) {
          const int m = first_rows[i].m + panel * kPanelRows;
          const int n_rows = M - m < kPanelRows ? M - m : kPanelRows;
          if (n_rows <= 0) break;
          gradient_panel(groups[i].pairs[panel], columns, n_pairs,
                         groups[i].scales + panel * kPanelRows, n_rows, n_columns, token == 0,
                         grad_ws[first_rows[i].weight] + static_cast<size_t>(m) * p.k + k, p.k);
        }
      }
    }
  }
}

void weight_gradient(const MasterWeights& p, const float* const* grads, const Int8Rows& x,
                     int begin, int end, float* const* grad_ws) {
  for (int group = begin; group < end; group += kTileGroups) {
    const int last = end - group < kTileGroups ? end : group + kTileGroups;
    weight_gradient_tile(p, grads, x, group, last, grad_ws);
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
