// GEMM with int8 and int4 weights, as output heads have them, by VNNI.
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/avx512/vectors.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// int32 budget: a lane gets 2 of 32 columns, 2 * 127 * 16383 at most, and four lanes are added in
// int32; 128 times 32 columns stay below 2^31.
constexpr int kColumnsPerWidening = 128 * 32;

// Sums of the lanes of x[0] to x[3], which doubles hold exactly.
YOCOBIT_INLINE __m256d wide_sums(const __m512i* x) {
  const __m512i quarters = quarter_sums(x);
  const __m512d halves = _mm512_add_pd(_mm512_cvtepi32_pd(_mm512_castsi512_si256(quarters)),
                                       _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(quarters, 1)));
  return _mm256_add_pd(_mm512_castpd512_pd256(halves), _mm512_extractf64x4_pd(halves, 1));
}

// One row by one token, from a column on.
inline int64_t int8_row(const DenseMatrix& w, const Int16Rows& x, int m, int n, int first) {
  const int8_t* row = static_cast<const int8_t*>(w.values) + static_cast<size_t>(m) * w.k;
  const int16_t* inputs = x.codes + static_cast<size_t>(n) * x.stride;
  int64_t total = 0;
  for (int k = first; k < w.k; ++k) total += row[k] * inputs[k];
  return total;
}

// Columns that fill no vector, to the totals of four rows by kTokens tokens.
template <int kTokens>
[[gnu::noinline]] void add_rest(const DenseMatrix& w, const Int16Rows& x, int m, int n, int first,
                                __m256d* totals) {
  for (int t = 0; t < kTokens; ++t) {
    alignas(32) double rest[4];
    for (int r = 0; r < 4; ++r) rest[r] = int8_row(w, x, m + r, n + t, first);
    totals[t] = _mm256_add_pd(totals[t], _mm256_load_pd(rest));
  }
}

// Weights of four rows widened to int16, each serving kTokens tokens.
template <int kTokens>
void int8_tile(const DenseMatrix& w, const Int16Rows& x, int m, int n, float* y,
               ptrdiff_t y_stride) {
  constexpr int kRows = 4, kColumns = 32;
  const int8_t* weights = static_cast<const int8_t*>(w.values) + static_cast<size_t>(m) * w.k;
  const int16_t* inputs = x.codes + static_cast<size_t>(n) * x.stride;
  const int8_t* next = weights + static_cast<size_t>(kRows) * w.k;  // tile
  const int whole = w.k / kColumns * kColumns;
  __m256d totals[kTokens];
  for (__m256d& total : totals) total = _mm256_setzero_pd();
  for (int begin = 0; begin < whole; begin += kColumnsPerWidening) {
    const int end = begin + kColumnsPerWidening < whole ? begin + kColumnsPerWidening : whole;
    __m512i sums[kTokens][kRows];
    for (auto& token : sums) {
      for (__m512i& sum : token) sum = _mm512_setzero_si512();
    }
    for (int k = begin; k < end; k += kColumns) {
      __m512i xs[kTokens];
      for (int t = 0; t < kTokens; ++t) {
        xs[t] = _mm512_loadu_si512(inputs + static_cast<size_t>(t) * x.stride + k);
      }
      for (int byte = 0; byte < kRows * kColumns; byte += kCacheLine) {
        __builtin_prefetch(next + static_cast<size_t>(k) * kRows + byte);
      }
      for (int r = 0; r < kRows; ++r) {
        const int8_t* row = weights + static_cast<size_t>(r) * w.k + k;
        const __m512i wide =
            _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row)));
        // Not the intrinsic: GCC 12 copies sums before and after it.
        for (int t = 0; t < kTokens; ++t) {
          asm("vpdpwssd %2, %1, %0" : "+v"(sums[t][r]) : "v"(wide), "v"(xs[t]));
        }
      }
    }
    for (int t = 0; t < kTokens; ++t) totals[t] = _mm256_add_pd(totals[t], wide_sums(sums[t]));
  }
  if (whole < w.k) add_rest<kTokens>(w, x, m, n, whole, totals);
  for (int t = 0; t < kTokens; ++t) {
    const __m128 scales = _mm_mul_ps(_mm_set1_ps(x.scales[n + t]), _mm_loadu_ps(w.scales + m));
    _mm_storeu_ps(y + (n + t) * y_stride + m, _mm_mul_ps(_mm256_cvtpd_ps(totals[t]), scales));
  }
}

void int8_gemm(const DenseMatrix& w, const Int16Rows& x, int row_begin, int row_end, float* y,
               ptrdiff_t y_stride) {
  int m = row_begin;
  for (; m + 4 <= row_end; m += 4) {
    int n = 0;
    for (; n + 4 <= x.n; n += 4) int8_tile<4>(w, x, m, n, y, y_stride);
    for (; n < x.n; ++n) int8_tile<1>(w, x, m, n, y, y_stride);
  }
  for (; m < row_end; ++m) {
    for (int n = 0; n < x.n; ++n) {
      const float total = static_cast<float>(int8_row(w, x, m, n, 0));
      y[n * y_stride + m] = total * (x.scales[n] * w.scales[m]);
    }
  }
}

// A group by one token. sum (code - 8) x = sum code x - 8 sum x.
void int4_gemv(const Int4Matrix& w, const Int16Rows& x, int group, int n, float* y) {
  const __m256i low_four_bits = _mm256_set1_epi8(15);
  const int16_t* inputs = x.codes + static_cast<size_t>(n) * x.stride;
  const int32_t* input_sums = x.sums + static_cast<size_t>(n) * (x.stride / kInt4Block);
  __m256 total = _mm256_setzero_ps();
  for (int block = 0; block < w.n_blocks; ++block, inputs += kInt4Block) {
    const size_t at = (static_cast<size_t>(group) * w.n_blocks + block) * kRowsPerGroup;
    const __m512i xs[2] = {_mm512_loadu_si512(inputs), _mm512_loadu_si512(inputs + 32)};
    __m512i sums[kRowsPerGroup];
    for (int r = 0; r < kRowsPerGroup; ++r) {
      const uint8_t* codes = w.codes + (at + r) * kBlockBytes;
      if (r % 2 == 0) __builtin_prefetch(codes + kPrefetchBytes);
      const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(packed, 4), low_four_bits);
      const __m512i low = _mm512_cvtepu8_epi16(_mm256_and_si256(packed, low_four_bits));
      sums[r] = _mm512_dpwssd_epi32(_mm512_setzero_si512(), low, xs[0]);
      sums[r] = _mm512_dpwssd_epi32(sums[r], _mm512_cvtepu8_epi16(high), xs[1]);
    }
    const __m256 scales =
        _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w.scales + at)));
    const __m256i sum = _mm256_sub_epi32(lane_sums(sums), _mm256_set1_epi32(8 * input_sums[block]));
    total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scales, total);
  }
  _mm256_mask_storeu_ps(y + group * kRowsPerGroup, rows_below(w.m - group * kRowsPerGroup),
                        _mm256_mul_ps(total, _mm256_set1_ps(x.scales[n])));
}

// Two groups, or one twice, by four tokens. A lane is a row, so that nothing is summed across
// lanes; each 32 bits of a transposed vector give four pairs of weights: even and odd bytes, low
// and high nibbles.
void int4_tile(const Int4Matrix& w, const Int16Rows& x, int first, int second, int n, float* y,
               ptrdiff_t y_stride) {
  constexpr int kTokens = 4;
  const __m512i nibbles = _mm512_set1_epi16(15);
  // Of every four columns first the even ones, then the odd ones.
  const __m512i even_odd =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
  const int blocks_per_row = x.stride / kInt4Block;
  __m512 totals[kTokens];
  for (__m512& total : totals) total = _mm512_setzero_ps();
  for (int block = 0; block < w.n_blocks; ++block) {
    const size_t at = (static_cast<size_t>(first) * w.n_blocks + block) * kRowsPerGroup;
    const size_t other = (static_cast<size_t>(second) * w.n_blocks + block) * kRowsPerGroup;
    __m512i columns[8];
    for (int byte = 0; byte < kRowsPerGroup * kBlockBytes; byte += kCacheLine) {
      __builtin_prefetch(w.codes + other * kBlockBytes + kPrefetchBytes + byte);
    }
    transpose_rows(w.codes + at * kBlockBytes, w.codes + other * kBlockBytes, columns);
    alignas(64) int32_t inputs[kTokens][kInt4Block / 2];  // pairs of int16
    for (int t = 0; t < kTokens; ++t) {
      const int16_t* from = x.codes + static_cast<size_t>(n + t) * x.stride + block * kInt4Block;
      for (int half = 0; half < 2; ++half) {
        _mm512_store_si512(inputs[t] + 16 * half,
                           _mm512_shuffle_epi8(_mm512_loadu_si512(from + 32 * half), even_odd));
      }
    }
    // Otherwise GCC keeps the inputs in registers and takes them apart, instead of spreading them
    // on load.
    asm("" : "+m"(inputs));
    __m512i sums[kTokens][4];
    for (auto& token : sums) {
      for (__m512i& sum : token) sum = _mm512_setzero_si512();
    }
#pragma GCC unroll 8
    for (int c = 0; c < 8; ++c) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {  // even and odd bytes of the low nibbles, of the high nibbles
        const int shift = 8 * (i % 2) + 4 * (i / 2);
        const __m512i weights = _mm512_and_si512(_mm512_srli_epi16(columns[c], shift), nibbles);
        for (int t = 0; t < kTokens; ++t) {
          const __m512i pair = _mm512_set1_epi32(inputs[t][16 * (i / 2) + 2 * c + i % 2]);
          sums[t][i] = _mm512_dpwssd_epi32(sums[t][i], weights, pair);
        }
      }
    }
    const __m128i scales = _mm_loadu_si128(reinterpret_cast<const __m128i*>(w.scales + at));
    const __m128i others = _mm_loadu_si128(reinterpret_cast<const __m128i*>(w.scales + other));
    const __m512 in_order = _mm512_cvtph_ps(
        _mm256_set_m128i(_mm_unpackhi_epi64(scales, others), _mm_unpacklo_epi64(scales, others)));
    for (int t = 0; t < kTokens; ++t) {
      const int32_t offset = 8 * x.sums[static_cast<size_t>(n + t) * blocks_per_row + block];
      const __m512i all = _mm512_add_epi32(_mm512_add_epi32(sums[t][0], sums[t][1]),
                                           _mm512_add_epi32(sums[t][2], sums[t][3]));
      const __m512i sum = _mm512_sub_epi32(all, _mm512_set1_epi32(offset));
      totals[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), in_order, totals[t]);
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    const __m512 scaled = _mm512_mul_ps(totals[t], _mm512_set1_ps(x.scales[n + t]));
    const __m512 rows = _mm512_shuffle_f32x4(scaled, scaled, _MM_SHUFFLE(3, 1, 2, 0));
    float* out = y + (n + t) * y_stride;
    _mm256_mask_storeu_ps(out + first * kRowsPerGroup, rows_below(w.m - first * kRowsPerGroup),
                          _mm512_castps512_ps256(rows));
    _mm256_mask_storeu_ps(out + second * kRowsPerGroup, rows_below(w.m - second * kRowsPerGroup),
                          _mm512_extractf32x8_ps(rows, 1));
  }
}

void int4_gemm(const Int4Matrix& w, const Int16Rows& x, int group_begin, int group_end, float* y,
               ptrdiff_t y_stride) {
  for (int group = group_begin; group < group_end; group += 2) {
    const int second = group + 1 < group_end ? group + 1 : group;
    int n = 0;
    for (; n + 4 <= x.n; n += 4) int4_tile(w, x, group, second, n, y, y_stride);
    for (; n < x.n; ++n) {
      int4_gemv(w, x, group, n, y + n * y_stride);
      if (second != group) int4_gemv(w, x, second, n, y + n * y_stride);
    }
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
