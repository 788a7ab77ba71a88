// GEMV, and GEMM in register tiles of a few tokens, with ternary and sign weights over codes as
// they are stored. A vector of packed codes is one block of a row.
//
// `Dots` sums products of bytes, unsigned codes by signed activations:
//   add(sum, codes, x)       add products of neighbours to each lane
//   widened(sum)             the sums as int32, which are added to a total
//   shifted(a, b, bits)      a + (b >> bits)
//   kGemvBlocks, kGemmBlocks blocks whose sums fit the lanes: GEMV multiplies codes in their bit
//                            fields of the nibbles, GEMM unpacked ones; activations are at most 127
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/avx2/vectors.h"
#include "kernels/generic/low_bit-inl.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// Write the outputs of the rows of a group and a token from the sums of codes by activations.
template <typename Format>
YOCOBIT_INLINE void write_rows(__m256i sums, const BitMatrix& w, const Int8Rows& x, int group,
                               int n, float* y) {
  const int m = group * kRowsPerGroup;
  const __m256i products =
      _mm256_sub_epi32(_mm256_slli_epi32(sums, Format::kShift), _mm256_set1_epi32(x.sums[n]));
  const F32x8 scales = mul(splat(x.scales[n]), scales_of(w, m));
  store_first(y + m, mul({_mm256_cvtepi32_ps(products)}, scales), w.m - m);
}

// GEMV: sums of kRows rows of a group by one token. Codes stay in their bit fields of the nibbles,
// which saves a shift; each field has sums of its own, shifted down before they are widened.
template <typename Dots, typename Format, int kRows>
YOCOBIT_INLINE void add_rows(const BitMatrix& w, const Int8Rows& x, int group, int first_row, int n,
                             __m256i* out) {
  constexpr int kFields = 4 / Format::kBits, kMask = (1 << Format::kBits) - 1;
  const uint8_t* codes =
      w.codes + (static_cast<size_t>(group) * w.n_blocks * kRowsPerGroup + first_row) * kBlockBytes;
  const int8_t* inputs = x.codes + static_cast<size_t>(n) * x.stride;
  GroupPrefetcher next(w, group, first_row);
  __m256i totals[kRows];
  for (__m256i& total : totals) total = _mm256_setzero_si256();
  for (int begin = 0; begin < w.n_blocks; begin += Dots::kGemvBlocks) {
    const int end = begin + Dots::kGemvBlocks < w.n_blocks ? begin + Dots::kGemvBlocks : w.n_blocks;
    __m256i sums[kRows][kFields];
    for (auto& row : sums) {
      for (__m256i& sum : row) sum = _mm256_setzero_si256();
    }
    for (int block = begin; block < end; ++block, codes += kRowsPerGroup * kBlockBytes) {
      next.prefetch<kRows>();
      for (int half = 0; half < 2; ++half) {
        __m256i packed[kRows];
        for (int r = 0; r < kRows; ++r) {
          packed[r] = load_bytes(codes + r * kBlockBytes);
          if (half == 1) packed[r] = _mm256_srli_epi16(packed[r], 4);
        }
#pragma GCC unroll 4
        for (int field = 0; field < kFields; ++field, inputs += kBlockBytes) {
          const __m256i mask = _mm256_set1_epi8(kMask << (field * Format::kBits));
          const __m256i xs = load_bytes(inputs);
          for (int r = 0; r < kRows; ++r) {
            sums[r][field] = Dots::add(sums[r][field], _mm256_and_si256(packed[r], mask), xs);
          }
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      __m256i sum = sums[r][0];
      for (int field = 1; field < kFields; ++field) {
        sum = Dots::shifted(sum, sums[r][field], field * Format::kBits);
      }
      totals[r] = _mm256_add_epi32(totals[r], Dots::widened(sum));
    }
  }
  for (int r = 0; r < kRows; ++r) out[first_row + r] = totals[r];
}

// A group by one token.
template <typename Dots, typename Format>
void gemv_group(const BitMatrix& w, const Int8Rows& x, int group, int n, float* y) {
  constexpr int kRows = 2 * Format::kBits;  // 8 sums
  __m256i totals[kRowsPerGroup];
  for (int row = 0; row < kRowsPerGroup; row += kRows) {
    add_rows<Dots, Format, kRows>(w, x, group, row, n, totals);
  }
  write_rows<Format>(lane_sums(totals), w, x, group, n, y);
}

// Sums of kRows rows of a group by kTokens tokens: every unpacked code vector serves kTokens tokens
// and every activation vector kRows rows.
template <typename Dots, typename Format, int kRows, int kTokens>
YOCOBIT_INLINE void add_rows(const BitMatrix& w, const Int8Rows& x, int group, int first_row, int n,
                             __m256i (*out)[kRowsPerGroup]) {
  const uint8_t* codes =
      w.codes + (static_cast<size_t>(group) * w.n_blocks * kRowsPerGroup + first_row) * kBlockBytes;
  const int8_t* inputs = x.codes + static_cast<size_t>(n) * x.stride;
  const __m256i mask = _mm256_set1_epi8((1 << Format::kBits) - 1);
  GroupPrefetcher next(w, group, first_row);
  __m256i totals[kRows][kTokens];
  for (auto& row : totals) {
    for (__m256i& total : row) total = _mm256_setzero_si256();
  }
  for (int begin = 0; begin < w.n_blocks; begin += Dots::kGemmBlocks) {
    const int end = begin + Dots::kGemmBlocks < w.n_blocks ? begin + Dots::kGemmBlocks : w.n_blocks;
    __m256i sums[kRows][kTokens];
    for (auto& row : sums) {
      for (__m256i& sum : row) sum = _mm256_setzero_si256();
    }
    for (int block = begin; block < end; ++block, codes += kRowsPerGroup * kBlockBytes) {
      next.prefetch<kRows>();
#pragma GCC unroll 8
      for (int field = 0; field < 8 / Format::kBits; ++field, inputs += kBlockBytes) {
        __m256i xs[kTokens];
        for (int t = 0; t < kTokens; ++t) {
          xs[t] = load_bytes(inputs + static_cast<size_t>(t) * x.stride);
        }
        for (int r = 0; r < kRows; ++r) {
          const __m256i packed = load_bytes(codes + r * kBlockBytes);
          // Shifted in 16 bits: what crosses a byte is masked off.
          const __m256i unpacked =
              _mm256_and_si256(_mm256_srli_epi16(packed, field * Format::kBits), mask);
          for (int t = 0; t < kTokens; ++t) {
            sums[r][t] = Dots::add(sums[r][t], unpacked, xs[t]);
          }
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int t = 0; t < kTokens; ++t) {
        totals[r][t] = _mm256_add_epi32(totals[r][t], Dots::widened(sums[r][t]));
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kTokens; ++t) out[t][first_row + r] = totals[r][t];
  }
}

// A group by the tokens from the n-th on.
template <typename Dots, typename Format>
void gemm_group(const BitMatrix& w, const Int8Rows& x, int group, int n, float* y,
                ptrdiff_t y_stride) {
  constexpr int kRows = 2, kTokens = 4;
  for (; n + kTokens <= x.n; n += kTokens) {
    __m256i totals[kTokens][kRowsPerGroup];
    for (int row = 0; row < kRowsPerGroup; row += kRows) {
      add_rows<Dots, Format, kRows, kTokens>(w, x, group, row, n, totals);
    }
    for (int t = 0; t < kTokens; ++t) {
      write_rows<Format>(lane_sums(totals[t]), w, x, group, n + t, y + (n + t) * y_stride);
    }
  }
  for (; n < x.n; ++n) gemv_group<Dots, Format>(w, x, group, n, y + n * y_stride);
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
