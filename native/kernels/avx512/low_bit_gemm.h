// GEMM with ternary and sign weights: the choice of a path by the size of the batch.
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/avx512/dot_gemm.h"
#include "kernels/avx512/vnni_gemm.h"
#include "kernels/generic/lut_gemm-inl.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// Fewer tokens do not pay for interleaving the codes, nor fewer rows for tables of the inputs.
constexpr int kLeastTokens = 16, kLeastGroups = 256;

template <typename Format>
void low_bit_gemm(const BitMatrix& w, const Int8Rows& x, int group_begin, int group_end, float* y,
                  ptrdiff_t y_stride) {
  // With ternary weights tables save less: where VNNI multiplies whole vectors twice a cycle it is
  // faster. Zen 4 does so once; there tables were faster when last measured.
  const bool uses_tables =
      (Format::kBits == 1 && group_end - group_begin >= kLeastGroups) || __builtin_cpu_is("amd");
  int token = 0;
  for (; uses_tables && token + kTokenBlock <= x.n; token += kTokenBlock) {
    lut_gemm<Format, I16Sums<kTokenBlock>>(w, x, token, kTokenBlock, group_begin, group_end, y,
                                           y_stride);
  }
  int group = group_begin;
  if (x.n - token >= kLeastTokens) {
    for (; group + kVnniGroups <= group_end; group += kVnniGroups) {
      vnni_gemm<Format>(w, x, group, token, y, y_stride);
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

void ternary_gemm(const BitMatrix& w, const Int8Rows& x, int group_begin, int group_end, float* y,
                  ptrdiff_t y_stride) {
  low_bit_gemm<Ternary>(w, x, group_begin, group_end, y, y_stride);
}

void sign_gemm(const BitMatrix& w, const Int8Rows& x, int group_begin, int group_end, float* y,
               ptrdiff_t y_stride) {
  low_bit_gemm<Sign>(w, x, group_begin, group_end, y, y_stride);
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
