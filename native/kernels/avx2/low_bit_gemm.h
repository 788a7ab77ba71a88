// GEMM and GEMV with ternary and sign weights: vpmaddubsw for few tokens, lookup tables for more.
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/avx2/dot_gemm.h"
#include "kernels/generic/lut_gemm-inl.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

struct Int16Dots {
  // int16 budget: in the highest bit field of a nibble a code counts 8 at most, so maddubs adds
  // 2 * 8 * 127 to a lane for each nibble, 4064 a block, and 8 blocks reach 32512. Code 3, in a
  // corrupt file, counts 12: sums may wrap then, and differ from those of other families.
  static constexpr int kGemvBlocks = 8;
  // int16 budget: maddubs adds two products of a code (<= 3, if a file is corrupt) and an
  // activation (<= 127), 762 at most; ternary adds 4 of those to a lane per block, 3048, and 10
  // blocks reach 30480. Sign adds 8 of at most 254, 2032: 16 would fit.
  static constexpr int kGemmBlocks = 10;

  YOCOBIT_INLINE static __m256i add(__m256i sum, __m256i codes, __m256i x) {
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, x));
  }
  YOCOBIT_INLINE static __m256i shifted(__m256i a, __m256i b, int bits) {
    return _mm256_add_epi16(a, _mm256_srai_epi16(b, bits));
  }
  YOCOBIT_INLINE static __m256i widened(__m256i sum) {
    return _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
  }
};

constexpr int kLutMinTokens = 9;  // fewer are faster by multiply-add

template <typename Format>
void low_bit_gemm(const BitMatrix& w, const Int8Rows& x, int group_begin, int group_end, float* y,
                  ptrdiff_t y_stride) {
  int token = 0;
  for (; token + kTokenBlock <= x.n; token += kTokenBlock) {
    lut_gemm<Format, I16Sums<kTokenBlock>>(w, x, token, kTokenBlock, group_begin, group_end, y,
                                           y_stride);
  }
  for (; token + kLutMinTokens <= x.n; token += 16) {
    const int n = x.n - token < 16 ? x.n - token : 16;
    lut_gemm<Format, I16Sums<16>>(w, x, token, n, group_begin, group_end, y, y_stride);
  }
  for (int group = group_begin; group < group_end; ++group) {
    gemm_group<Int16Dots, Format>(w, x, group, token, y, y_stride);
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
