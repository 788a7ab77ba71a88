// GEMM with ternary and sign weights: the choice of a path by the size of the batch.
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/avx512/dot_gemm.h"
#include "kernels/avx512/vnni_rate.h"
#include "kernels/avx512/vnni_rows.h"
#include "kernels/generic/lut_gemm-inl.h"
#include "kernels/generic/vnni_gemm-inl.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// Where 512-bit VNNI runs at full rate (vnni_rate.h), only tables of 8 columns save enough, and
// only with many rows; at half rate, those of 4 columns do too.
template <typename Format>
bool uses_tables(int n_groups) {
  if (is_vnni_at_full_rate) return Format::kBits == 1 && n_groups >= 256;
  return n_groups >= (Format::kBits == 1 ? 48 : 72);
}

// The fewest tokens for which interleaving the codes pays.
constexpr int kVnniMinTokens = 16;

//   1 token            GEMV
//   2 to 15            register tiles over codes as they are stored
//   16 and more        VNNI-interleaved
//   multiples of 32    lookup tables, where they pay
template <typename Format>
void low_bit_gemm(const BitMatrix& w, const Int8Rows& x, int group_begin, int group_end, float* y,
                  ptrdiff_t y_stride) {
  int token = 0;
  if (uses_tables<Format>(group_end - group_begin)) {
    for (; token + kTokenBlock <= x.n; token += kTokenBlock) {
      lut_gemm<Format, I16Sums<kTokenBlock>>(w, x, token, kTokenBlock, group_begin, group_end, y,
                                             y_stride);
    }
  }
  int group = group_begin;
  if (x.n - token >= kVnniMinTokens) {
    for (; group + kVnniGroups<VnniRows> <= group_end; group += kVnniGroups<VnniRows>) {
      vnni_gemm<VnniRows, Format>(w, x, group, token, y, y_stride);
    }
  }
  for (; group < group_end; ++group) {
    int n = token;
    for (; n + 8 <= x.n; n += 8) gemm_group<Format, 8>(w, x, group, n, y, y_stride);
    for (; n + 4 <= x.n; n += 4) gemm_group<Format, 4>(w, x, group, n, y, y_stride);
    switch (x.n - n) {
      case 3:
        gemm_group<Format, 3>(w, x, group, n, y, y_stride);
        break;
      case 2:
        gemm_group<Format, 2>(w, x, group, n, y, y_stride);
        break;
      case 1:
        gemv_group<Format>(w, x, group, n, y + n * y_stride);
        break;
    }
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
