// Kernels for x86 with AVX-512 (F, BW, DQ, VL) and VNNI.
//
// A 512-bit vector of packed codes is one block of two rows, as they are stored.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace yocobit {
namespace {

constexpr int kRegisters = 32;

#include "lanes_avx2.inc"

__m512i load_pair(const uint8_t* p) { return _mm512_loadu_si512(p); }

#include "kernels_float.inc"
#include "kernels_mixers.inc"

constexpr int kPairs = kRowsPerGroup / 2;  // vectors of a group's block
#ifndef USE_TABLES
#define USE_TABLES true
#endif
constexpr bool kUseTables = USE_TABLES;

__m512i splat_block(const void* p) {
  return _mm512_broadcast_i64x4(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}
__m512i splat_byte(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }

// Sums of the lanes of both halves of a group's vectors: row r in lane r.
[[gnu::always_inline]] inline __m256i row_sums(const __m512i* x) {
  __m256i halves[kPairs];  // of rows 2i and 2i + 1: four lanes each
  for (int i = 0; i < kPairs; ++i) {
    // Lanes 0-3 of row 2i, then of row 2i + 1.
    const __m512i swapped = _mm512_shuffle_i64x2(x[i], x[i], _MM_SHUFFLE(2, 3, 0, 1));
    const __m512i sums = _mm512_add_epi32(x[i], swapped);
    halves[i] = _mm512_castsi512_si256(_mm512_shuffle_i64x2(sums, sums, _MM_SHUFFLE(2, 0, 2, 0)));
  }
  const __m256i low = _mm256_hadd_epi32(halves[0], halves[1]);   // rows 0, 2 | 1, 3
  const __m256i high = _mm256_hadd_epi32(halves[2], halves[3]);  // rows 4, 6 | 5, 7
  const __m256i all = _mm256_hadd_epi32(low, high);              // rows 0, 2, 4, 6 | 1, 3, 5, 7
  return _mm256_permutevar8x32_epi32(all, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

// The rows of a group that exist.
__mmask8 rows_below(int m, int group) {
  const int n = m - group * kRowsPerGroup;
  return static_cast<__mmask8>(n >= kRowsPerGroup ? 0xff : (1 << n) - 1);
}

// Bits that a weight has, and what its code is worth: sum (code * kFactor - 1) x. int32 budget: a
// lane adds 4 products of a code in its place in a nibble (at most 12) and an activation for every
// 32 columns of a block's 32 bytes; below 2^24 columns that is less than 2^31.
struct Ternary {
  static constexpr int kBits = 2, kFactor = 1;
};
struct Sign {
  static constexpr int kBits = 1, kFactor = 2;
};

template <typename Kind>
void write_rows(const __m256i& code_sums, const BitMatrix& w, const QuantizedRows& x, int group,
                int n, float* y) {
  const __m256i sums =
      _mm256_sub_epi32(_mm256_mullo_epi32(code_sums, _mm256_set1_epi32(Kind::kFactor)),
                       _mm256_set1_epi32(x.sums[n]));
  const __m256 scaled =
      _mm256_mul_ps(_mm256_cvtepi32_ps(sums), _mm256_set1_ps(x.scales[n] * w.scale));
  _mm256_mask_storeu_ps(y + group * kRowsPerGroup, rows_below(w.m, group), scaled);
}

// A group by one token. Codes stay in their places in the nibbles: each place has sums of its own,
// shifted down at the end.
template <typename Kind>
void matvec_group(const BitMatrix& w, const QuantizedRows& x, int group, int n, float* y) {
  constexpr int kPlaces = 4 / Kind::kBits, kMask = (1 << Kind::kBits) - 1;
  const size_t block_bytes = kRowsPerGroup * kBlockBytes;
  const uint8_t* codes = w.codes + static_cast<size_t>(group) * w.n_blocks * block_bytes;
  const int8_t* inputs = x.codes + static_cast<size_t>(n) * x.stride;
  __m512i sums[kPlaces][kPairs];
  for (auto& place : sums) {
    for (__m512i& sum : place) sum = _mm512_setzero_si512();
  }
  for (int block = 0; block < w.n_blocks; ++block, codes += block_bytes) {
    for (int half = 0; half < 2; ++half) {
      __m512i packed[kPairs];
      for (int i = 0; i < kPairs; ++i) {
        packed[i] = load_pair(codes + 64 * i);
        if (half == 1) packed[i] = _mm512_srli_epi16(packed[i], 4);
      }
      for (int place = 0; place < kPlaces; ++place, inputs += kBlockBytes) {
        const __m512i xs = splat_block(inputs);
        const __m512i mask = splat_byte(kMask << (place * Kind::kBits));
        for (int i = 0; i < kPairs; ++i) {
          sums[place][i] =
              _mm512_dpbusd_epi32(sums[place][i], _mm512_and_si512(packed[i], mask), xs);
        }
      }
    }
  }
  for (int place = 1; place < kPlaces; ++place) {
    for (int i = 0; i < kPairs; ++i) {
      const __m512i shifted = _mm512_srai_epi32(sums[place][i], place * Kind::kBits);
      sums[0][i] = _mm512_add_epi32(sums[0][i], shifted);
    }
  }
  write_rows<Kind>(row_sums(sums[0]), w, x, group, n, y);
}

// A group by kTokens tokens: every unpacked vector of codes serves all of them.
template <typename Kind, int kTokens>
void matmul_group(const BitMatrix& w, const QuantizedRows& x, int group, int n, float* y,
                  ptrdiff_t y_stride) {
  const size_t block_bytes = kRowsPerGroup * kBlockBytes;
  const uint8_t* codes = w.codes + static_cast<size_t>(group) * w.n_blocks * block_bytes;
  const int8_t* inputs = x.codes + static_cast<size_t>(n) * x.stride;
  const __m512i mask = splat_byte((1 << Kind::kBits) - 1);
  __m512i sums[kTokens][kPairs];
  for (auto& token : sums) {
    for (__m512i& sum : token) sum = _mm512_setzero_si512();
  }
  for (int block = 0; block < w.n_blocks; ++block, codes += block_bytes) {
    __m512i packed[kPairs];
    for (int i = 0; i < kPairs; ++i) packed[i] = load_pair(codes + 64 * i);
#pragma GCC unroll 8
    for (int place = 0; place < 8 / Kind::kBits; ++place, inputs += kBlockBytes) {
      __m512i unpacked[kPairs];
      for (int i = 0; i < kPairs; ++i) {
        unpacked[i] = _mm512_and_si512(packed[i], mask);
        packed[i] = _mm512_srli_epi16(packed[i], Kind::kBits);
      }
      for (int t = 0; t < kTokens; ++t) {
        const __m512i xs = splat_block(inputs + static_cast<size_t>(t) * x.stride);
        for (int i = 0; i < kPairs; ++i) {
          sums[t][i] = _mm512_dpbusd_epi32(sums[t][i], unpacked[i], xs);
        }
      }
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    write_rows<Kind>(row_sums(sums[t]), w, x, group, n + t, y + (n + t) * y_stride);
  }
}

// Sums over 32 tokens.
struct TokenSums {
  static constexpr int kTokens = 32;
  __m512i all;

  static TokenSums widened(const __m128i* bytes) {
    return {_mm512_cvtepi8_epi16(_mm256_load_si256(reinterpret_cast<const __m256i*>(bytes)))};
  }
  TokenSums operator+(const TokenSums& other) const { return {_mm512_add_epi16(all, other.all)}; }
  TokenSums operator-(const TokenSums& other) const { return {_mm512_sub_epi16(all, other.all)}; }
  void add_to(int32_t* totals) const {
    auto* total = reinterpret_cast<__m512i*>(totals);
    const __m512i low = _mm512_cvtepi16_epi32(_mm512_castsi512_si256(all));
    const __m512i high = _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(all, 1));
    total[0] = _mm512_add_epi32(total[0], low);
    total[1] = _mm512_add_epi32(total[1], high);
  }
};

#include "table_matmul.inc"

template <typename Kind, typename Tables>
void bit_matmul(const BitMatrix& w, const QuantizedRows& x, int group_begin, int group_end,
                float* y, ptrdiff_t y_stride) {
  int token = 0;
  for (; token + TokenSums::kTokens <= x.n; token += TokenSums::kTokens) {
    table_matmul<Tables, TokenSums>(w, x, token, TokenSums::kTokens, group_begin, group_end, y,
                                    y_stride);
  }
  for (int group = group_begin; group < group_end; ++group) {
    int n = token;
    for (; n + 4 <= x.n; n += 4) matmul_group<Kind, 4>(w, x, group, n, y, y_stride);
    switch (x.n - n) {
      case 3:
        matmul_group<Kind, 3>(w, x, group, n, y, y_stride);
        break;
      case 2:
        matmul_group<Kind, 2>(w, x, group, n, y, y_stride);
        break;
      case 1:
        matvec_group<Kind>(w, x, group, n, y + n * y_stride);
        break;
    }
  }
}

void ternary_matmul(const BitMatrix& w, const QuantizedRows& x, int group_begin, int group_end,
                    float* y, ptrdiff_t y_stride) {
  bit_matmul<Ternary, TernaryTables>(w, x, group_begin, group_end, y, y_stride);
}

void sign_matmul(const BitMatrix& w, const QuantizedRows& x, int group_begin, int group_end,
                 float* y, ptrdiff_t y_stride) {
  bit_matmul<Sign, SignTables>(w, x, group_begin, group_end, y, y_stride);
}

// int32 budget: a lane gets 2 of 32 columns, 2 * 127 * 16383 at most; 512 of those stay below 2^31.
constexpr int kColumnsPerWidening = 512 * 32;

int64_t lane_sum_wide(const __m512i& x) {
  const __m512i low = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(x));
  return _mm512_reduce_add_epi64(
      _mm512_add_epi64(low, _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(x, 1))));
}

// Weights of kRows rows widened to int16, each serving kTokens tokens. K is a multiple of 8 only:
// the last columns are loaded under a mask.
template <int kRows, int kTokens>
void int8_tile(const DenseMatrix& w, const WideRows& x, int m, int n, float* y,
               ptrdiff_t y_stride) {
  const int8_t* weights = static_cast<const int8_t*>(w.values) + static_cast<size_t>(m) * w.k;
  const int16_t* inputs = x.codes + static_cast<size_t>(n) * x.stride;
  int64_t totals[kRows][kTokens] = {};
  for (int begin = 0; begin < w.k; begin += kColumnsPerWidening) {
    const int end = begin + kColumnsPerWidening < w.k ? begin + kColumnsPerWidening : w.k;
    __m512i sums[kRows][kTokens];
    for (auto& row : sums) {
      for (__m512i& sum : row) sum = _mm512_setzero_si512();
    }
    for (int k = begin; k < end; k += 32) {
      const __mmask32 columns = end - k >= 32 ? ~__mmask32{0} : (__mmask32{1} << (end - k)) - 1;
      __m512i xs[kTokens];
      for (int t = 0; t < kTokens; ++t) {
        xs[t] = _mm512_loadu_si512(inputs + static_cast<size_t>(t) * x.stride + k);
      }
      for (int r = 0; r < kRows; ++r) {
        const int8_t* row = weights + static_cast<size_t>(r) * w.k + k;
        const __m512i wide = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(columns, row));
        for (int t = 0; t < kTokens; ++t) {
          sums[r][t] = _mm512_dpwssd_epi32(sums[r][t], wide, xs[t]);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int t = 0; t < kTokens; ++t) totals[r][t] += lane_sum_wide(sums[r][t]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kTokens; ++t) {
      y[(n + t) * y_stride + m + r] =
          static_cast<float>(totals[r][t]) * (x.scales[n + t] * w.scales[m + r]);
    }
  }
}

void int8_matmul(const DenseMatrix& w, const WideRows& x, int row_begin, int row_end, float* y,
                 ptrdiff_t y_stride) {
  int m = row_begin;
  for (; m + 4 <= row_end; m += 4) {
    int n = 0;
    for (; n + 4 <= x.n; n += 4) int8_tile<4, 4>(w, x, m, n, y, y_stride);
    for (; n < x.n; ++n) int8_tile<4, 1>(w, x, m, n, y, y_stride);
  }
  for (; m < row_end; ++m) {
    for (int n = 0; n < x.n; ++n) int8_tile<1, 1>(w, x, m, n, y, y_stride);
  }
}

// Sums of the 16 lanes of eight vectors, the i-th in lane i.
[[gnu::always_inline]] inline __m256i lane_sums(const __m512i* x) {
  __m512i pairs[4], fours[2];
  for (int i = 0; i < 4; ++i) {
    pairs[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]),
                                _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]));
  }
  for (int i = 0; i < 2; ++i) {
    fours[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(pairs[2 * i], pairs[2 * i + 1]),
                                _mm512_unpackhi_epi64(pairs[2 * i], pairs[2 * i + 1]));
  }
  // Quarters of rows 0-3 and of rows 4-7, added by halves.
  const __m512i eight =
      _mm512_add_epi32(_mm512_shuffle_i64x2(fours[0], fours[1], _MM_SHUFFLE(1, 0, 1, 0)),
                       _mm512_shuffle_i64x2(fours[0], fours[1], _MM_SHUFFLE(3, 2, 3, 2)));
  const __m512i ordered = _mm512_shuffle_i64x2(eight, eight, _MM_SHUFFLE(3, 1, 2, 0));
  return _mm256_add_epi32(_mm512_castsi512_si256(ordered), _mm512_extracti64x4_epi64(ordered, 1));
}

// The eight rows of a group by kTokens tokens. sum (code - 8) x = sum code x - 8 sum x.
template <int kTokens>
void int4_tile(const Int4Matrix& w, const WideRows& x, int group, int n, float* y,
               ptrdiff_t y_stride) {
  const __m256i low_four_bits = _mm256_set1_epi8(15);
  const int blocks_per_row = x.stride / kInt4Block;
  __m256 totals[kTokens];
  for (__m256& total : totals) total = _mm256_setzero_ps();
  for (int block = 0; block < w.n_blocks; ++block) {
    const size_t at = (static_cast<size_t>(group) * w.n_blocks + block) * kRowsPerGroup;
    const int16_t* inputs = x.codes + static_cast<size_t>(n) * x.stride + block * kInt4Block;
    __m512i sums[kTokens][kRowsPerGroup];
    for (int r = 0; r < kRowsPerGroup; ++r) {
      const uint8_t* codes = w.codes + (at + r) * kBlockBytes;
      const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
      const __m512i low = _mm512_cvtepu8_epi16(_mm256_and_si256(packed, low_four_bits));
      const __m512i high =
          _mm512_cvtepu8_epi16(_mm256_and_si256(_mm256_srli_epi16(packed, 4), low_four_bits));
      for (int t = 0; t < kTokens; ++t) {
        const int16_t* xs = inputs + static_cast<size_t>(t) * x.stride;
        sums[t][r] = _mm512_dpwssd_epi32(
            _mm512_dpwssd_epi32(_mm512_setzero_si512(), low, _mm512_loadu_si512(xs)), high,
            _mm512_loadu_si512(xs + 32));
      }
    }
    const __m256 scales =
        _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w.scales + at)));
    for (int t = 0; t < kTokens; ++t) {
      const __m256i offset =
          _mm256_set1_epi32(8 * x.sums[static_cast<size_t>(n + t) * blocks_per_row + block]);
      const __m256i sum = _mm256_sub_epi32(lane_sums(sums[t]), offset);
      totals[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scales, totals[t]);
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    _mm256_mask_storeu_ps(y + (n + t) * y_stride + group * kRowsPerGroup, rows_below(w.m, group),
                          _mm256_mul_ps(totals[t], _mm256_set1_ps(x.scales[n + t])));
  }
}

void int4_matmul(const Int4Matrix& w, const WideRows& x, int group_begin, int group_end, float* y,
                 ptrdiff_t y_stride) {
  for (int group = group_begin; group < group_end; ++group) {
    int n = 0;
    for (; n + 2 <= x.n; n += 2) int4_tile<2>(w, x, group, n, y, y_stride);
    for (; n < x.n; ++n) int4_tile<1>(w, x, group, n, y, y_stride);
  }
}

}  // namespace

#define YOCOBIT_KERNEL_TABLE kAvx512Kernels
#define YOCOBIT_KERNEL_NAME "avx512"
#include "kernel_table.inc"

}  // namespace yocobit
