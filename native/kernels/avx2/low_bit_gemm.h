// GEMM and GEMV with ternary and sign weights: vpmaddubsw for few tokens, lookup tables for more.
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/generic/lut_gemm-inl.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

inline int32_t lane_sum(const __m256i& x) {
  const __m128i halves = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  const __m128i pairs = _mm_add_epi32(halves, _mm_shuffle_epi32(halves, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(pairs, _mm_shuffle_epi32(pairs, 0xb1)));
}

template <typename Format>
void write_sum(const __m256i& code_sums, const BitMatrix& w, const Int8Rows& x, int m, int n,
               float* y) {
  const int32_t sum = Format::kFactor * lane_sum(code_sums) - x.sums[n];
  y[m] = static_cast<float>(sum) * (x.scales[n] * scale_of(w, m));
}

// int16 budget: in the highest bit field of a nibble a code counts 8 at most, so maddubs adds
// 2 * 8 * 127 to a lane for each nibble, 4064 a block, and 8 blocks reach 32512.
constexpr int kBlocksPerField = 8;

// GEMV: kRows rows of a group by one token. Codes stay in their bit fields of the nibbles, which
// saves a shift; each field has sums of its own, shifted down before they are widened.
template <typename Format, int kRows>
void gemv_rows(const BitMatrix& w, const Int8Rows& x, int group, int first_row, int n, float* y) {
  constexpr int kFields = 4 / Format::kBits, kMask = (1 << Format::kBits) - 1;
  const uint8_t* codes =
      w.codes + (static_cast<size_t>(group) * w.n_blocks * kRowsPerGroup + first_row) * kBlockBytes;
  const int8_t* inputs = x.codes + static_cast<size_t>(n) * x.stride;
  __m256i totals[kRows];
  for (__m256i& total : totals) total = _mm256_setzero_si256();
  for (int begin = 0; begin < w.n_blocks; begin += kBlocksPerField) {
    const int end = begin + kBlocksPerField < w.n_blocks ? begin + kBlocksPerField : w.n_blocks;
    __m256i sums[kRows][kFields];
    for (auto& row : sums) {
      for (__m256i& sum : row) sum = _mm256_setzero_si256();
    }
    for (int block = begin; block < end; ++block, codes += kRowsPerGroup * kBlockBytes) {
      for (int r = 0; r < kRows; r += 2) {
        __builtin_prefetch(codes + r * kBlockBytes + kPrefetchBytes);
      }
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
            const __m256i products = _mm256_maddubs_epi16(_mm256_and_si256(packed[r], mask), xs);
            sums[r][field] = _mm256_add_epi16(sums[r][field], products);
          }
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      __m256i sum = sums[r][0];
      for (int field = 1; field < kFields; ++field) {
        sum = _mm256_add_epi16(sum, _mm256_srai_epi16(sums[r][field], field * Format::kBits));
      }
      totals[r] = _mm256_add_epi32(totals[r], _mm256_madd_epi16(sum, _mm256_set1_epi16(1)));
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const int m = group * kRowsPerGroup + first_row + r;
    if (m < w.m) write_sum<Format>(totals[r], w, x, m, n, y);
  }
}

// int16 budget: maddubs adds two products of a code (<= 3, if a file is corrupt) and an activation
// (<= 127), 762 at most; ternary adds 4 of those to a lane per block, 3048, and 10 blocks reach
// 30480. Sign adds 8 of at most 254, 2032: 16 would fit.
constexpr int kBlocksPerWidening = 10;

// kRows rows of a group by kTokens tokens: every unpacked code vector serves kTokens tokens and
// every activation vector kRows rows.
template <typename Format, int kRows, int kTokens>
void gemm_rows(const BitMatrix& w, const Int8Rows& x, int group, int first_row, int n, float* y,
               ptrdiff_t y_stride) {
  const uint8_t* codes =
      w.codes + (static_cast<size_t>(group) * w.n_blocks * kRowsPerGroup + first_row) * kBlockBytes;
  const int8_t* inputs = x.codes + static_cast<size_t>(n) * x.stride;
  const __m256i mask = _mm256_set1_epi8((1 << Format::kBits) - 1);
  __m256i totals[kRows][kTokens];
  for (auto& row : totals) {
    for (__m256i& total : row) total = _mm256_setzero_si256();
  }
  for (int begin = 0; begin < w.n_blocks; begin += kBlocksPerWidening) {
    const int end =
        begin + kBlocksPerWidening < w.n_blocks ? begin + kBlocksPerWidening : w.n_blocks;
    __m256i sums[kRows][kTokens];
    for (auto& row : sums) {
      for (__m256i& sum : row) sum = _mm256_setzero_si256();
    }
    for (int block = begin; block < end; ++block, codes += kRowsPerGroup * kBlockBytes) {
      __builtin_prefetch(codes + kPrefetchBytes);
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
            sums[r][t] = _mm256_add_epi16(sums[r][t], _mm256_maddubs_epi16(unpacked, xs[t]));
          }
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int t = 0; t < kTokens; ++t) {
        const __m256i widened = _mm256_madd_epi16(sums[r][t], _mm256_set1_epi16(1));
        totals[r][t] = _mm256_add_epi32(totals[r][t], widened);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const int m = group * kRowsPerGroup + first_row + r;
    for (int t = 0; t < kTokens && m < w.m; ++t) {
      write_sum<Format>(totals[r][t], w, x, m, n + t, y + (n + t) * y_stride);
    }
  }
}

constexpr int kLutMinTokens = 9;  // fewer are faster by multiply-add

template <typename Format>
void low_bit_gemm(const BitMatrix& w, const Int8Rows& x, int group_begin, int group_end, float* y,
                  ptrdiff_t y_stride) {
  int token = 0;
  for (; token + kTokenBlock <= x.n; token += kTokenBlock) {
    lut_gemm<Format, I16Sums<32>>(w, x, token, kTokenBlock, group_begin, group_end, y, y_stride);
  }
  for (; token + kLutMinTokens <= x.n; token += 16) {
    const int n = x.n - token < 16 ? x.n - token : 16;
    lut_gemm<Format, I16Sums<16>>(w, x, token, n, group_begin, group_end, y, y_stride);
  }
  constexpr int kRows = 4 / (8 / Format::kBits / 4);  // at a time: 8 sums, whatever the kind
  for (int group = group_begin; group < group_end; ++group) {
    int n = token;
    for (; n + 4 <= x.n; n += 4) {
      for (int row = 0; row < kRowsPerGroup; row += 2) {
        gemm_rows<Format, 2, 4>(w, x, group, row, n, y, y_stride);
      }
    }
    for (; n < x.n; ++n) {
      for (int row = 0; row < kRowsPerGroup; row += kRows) {
        gemv_rows<Format, kRows>(w, x, group, row, n, y + n * y_stride);
      }
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
