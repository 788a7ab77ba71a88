// GEMM and GEMV with ternary and sign weights by vpdpbusd: the choice of a path by the size of the
// batch.
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/avx2/dot_gemm.h"
#include "kernels/generic/lut_gemm-inl.h"
#include "kernels/generic/vnni_gemm-inl.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

struct Int32Dots {
  // int32 budget: a lane adds 4 products of a code in its bit field of a nibble (at most 12) and an
  // activation, twice a block: 12192 at most, and 2^17 blocks of those are below 2^31.
  static constexpr int kGemvBlocks = 1 << 17, kGemmBlocks = 1 << 17;

  YOCOBIT_INLINE static __m256i add(__m256i sum, __m256i codes, __m256i x) {
    return dot_bytes(sum, codes, x);
  }
  YOCOBIT_INLINE static __m256i shifted(__m256i a, __m256i b, int bits) {
    return _mm256_add_epi32(a, _mm256_srai_epi32(b, bits));
  }
  YOCOBIT_INLINE static __m256i widened(__m256i sum) { return sum; }
};

// Vectors whose lanes are the rows of a group.
struct VnniRows {
  using Vector = __m256i;
  static constexpr int kGroups = 1, kVectors = 3, kTokens = 4;

  YOCOBIT_INLINE static void transpose(const uint8_t* codes, size_t, Vector* columns) {
    F32x8 rows[kRowsPerGroup];
    for (int r = 0; r < kRowsPerGroup; ++r) {
      rows[r].v = _mm256_castsi256_ps(load_bytes(codes + r * kBlockBytes));
    }
    yocobit::YOCOBIT_TARGET::transpose(rows);
    for (int c = 0; c < 8; ++c) columns[c] = _mm256_castps_si256(rows[c].v);
  }
  YOCOBIT_INLINE static Vector dot(Vector sum, Vector codes, Vector x) {
    return dot_bytes(sum, codes, x);
  }

  template <typename Format>
  YOCOBIT_INLINE static void write(Vector sum, const BitMatrix& w, const Int8Rows& x, int row,
                                   int n, float* y) {
    write_rows<Format>(sum, w, x, row / kRowsPerGroup, n, y);
  }
};

// The fewest tokens for which interleaving the codes pays.
constexpr int kVnniMinTokens = 16;
// Rows and tokens from which lookup tables pay. Those of 8 columns save more than those of 4.
template <typename Format>
constexpr int kLutMinGroups = Format::kBits == 1 ? 48 : 72;
template <typename Format>
constexpr int kLutMinTokens = Format::kBits == 1 ? 11 : kTokenBlock;

//   1 token                GEMV
//   2 to 15                register tiles over codes as they are stored
//   16 and more            VNNI-interleaved
//   kLutMinTokens          lookup tables for 32 or 16 tokens, where they pay
template <typename Format>
void low_bit_gemm(const BitMatrix& w, const Int8Rows& x, int group_begin, int group_end, float* y,
                  ptrdiff_t y_stride) {
  int token = 0;
  if (group_end - group_begin >= kLutMinGroups<Format>) {
    for (; token + kTokenBlock <= x.n; token += kTokenBlock) {
      lut_gemm<Format, I16Sums<kTokenBlock>>(w, x, token, kTokenBlock, group_begin, group_end, y,
                                             y_stride);
    }
    for (; token + kLutMinTokens<Format> <= x.n; token += 16) {
      const int n = x.n - token < 16 ? x.n - token : 16;
      lut_gemm<Format, I16Sums<16>>(w, x, token, n, group_begin, group_end, y, y_stride);
    }
  }
  int group = group_begin;
  if (x.n - token >= kVnniMinTokens) {
    for (; group + kVnniGroups<VnniRows> <= group_end; group += kVnniGroups<VnniRows>) {
      vnni_gemm<VnniRows, Format>(w, x, group, token, y, y_stride);
    }
  }
  for (; group < group_end; ++group) {
    gemm_group<Int32Dots, Format>(w, x, group, token, y, y_stride);
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
