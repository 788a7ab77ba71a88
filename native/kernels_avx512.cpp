// Kernels for x86 with AVX-512 (F, BW, DQ, VL) and VNNI.
//
// A 512-bit vector of packed codes is one block of two rows, as they are stored.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "code_tiles.h"
#include "kernels.h"
#include "row_kernels.h"
#include "training_kernels.h"

namespace yocobit {
namespace {

constexpr int kRegisters = 32;

#include "lanes_avx2.inc"
#include "lanes_avx512.inc"

__m512i load_pair(const uint8_t* p) { return _mm512_loadu_si512(p); }

#include "kernels_float.inc"

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

#include "kernels_int16_avx512.inc"
#include "kernels_mixers.inc"

constexpr int kPairs = kRowsPerGroup / 2;  // vectors of a group's block

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

#include "table_matmul.inc"

// int32 budget: a lane adds 4 products of a code in its place in a nibble (at most 12) and an
// activation for every 32 columns of a block's 32 bytes; below 2^24 columns that is less than 2^31.
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
  static constexpr int kTokens = kTokenBlock;
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

template <typename Kind>
void bit_matmul(const BitMatrix& w, const QuantizedRows& x, int group_begin, int group_end,
                float* y, ptrdiff_t y_stride) {
  int token = 0;
  for (; token + kTokenBlock <= x.n; token += kTokenBlock) {
    table_matmul<Kind, TokenSums>(w, x, token, kTokenBlock, group_begin, group_end, y, y_stride);
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
  bit_matmul<Ternary>(w, x, group_begin, group_end, y, y_stride);
}

void sign_matmul(const BitMatrix& w, const QuantizedRows& x, int group_begin, int group_end,
                 float* y, ptrdiff_t y_stride) {
  bit_matmul<Sign>(w, x, group_begin, group_end, y, y_stride);
}

#include "head_matmul_avx512.inc"
#include "training_avx512.inc"

}  // namespace

#define YOCOBIT_KERNEL_TABLE kAvx512Kernels
#define YOCOBIT_TRAINING_TABLE kAvx512Training
#define YOCOBIT_KERNEL_NAME "avx512"
#include "kernel_table.inc"
#define YOCOBIT_ROW_TABLE kAvx512Rows
#include "row_kernels.inc"
#include "training_table.inc"

}  // namespace yocobit
