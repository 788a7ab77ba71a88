// GEMM with ternary and sign weights: the choice of a path by the size of the batch.
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <cstddef>

#include "kernels/generic/lut_gemm-inl.h"
#include "kernels/neon/gemv.h"
#include "kernels/neon/panel_gemm.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// The fewest groups for which building tables of sign weights pays: about 25 groups save as many
// instructions as the tables cost.
constexpr int kLutMinGroups = 48;

//   1 token            GEMV
//   2 and more         panels
//   multiples of 32    lookup tables, where they take fewer instructions (uses_tables)
template <typename Format, typename Products, bool uses_tables>
void low_bit_gemm(const BitMatrix& w, const Int8Rows& x, int group_begin, int group_end, float* y,
                  ptrdiff_t y_stride) {
  int token = 0;
  if (uses_tables && group_end - group_begin >= kLutMinGroups) {
    for (; token + kTokenBlock <= x.n; token += kTokenBlock) {
      lut_gemm<Format, I16Sums<kTokenBlock>>(w, x, token, kTokenBlock, group_begin, group_end, y,
                                             y_stride);
    }
  }
  if (x.n - token != 1) {
    return panel_gemm<Format, Products>(w, x, token, group_begin, group_end, y, y_stride);
  }
  for (int group = group_begin; group < group_end; ++group) {
    gemv_group<Format>(w, x, group, token, y + token * y_stride);
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
