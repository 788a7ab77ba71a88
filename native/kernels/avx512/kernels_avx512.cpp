// Kernels for x86 with AVX-512 (F, BW, DQ, VL) and VNNI.
//
// A 512-bit vector of packed codes is one block of two rows, as they are stored.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/code_tiles.h"
#include "kernels/kernels.h"
#include "kernels/row_kernels.h"
#include "kernels/training_kernels.h"

namespace yocobit {
namespace {

constexpr int kRegisters = 32;

#include "simd/lanes_avx2.inc"
#include "simd/lanes_avx512.inc"

__m512i load_pair(const uint8_t* p) { return _mm512_loadu_si512(p); }

#include "kernels/generic/kernels_float.inc"

// In each 128 bits the sums of four lanes of x[0] to x[3].
[[gnu::always_inline]] inline __m512i quarter_sums(const __m512i* x) {
  __m512i pairs[2];
  for (int i = 0; i < 2; ++i) {
    pairs[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]),
                                _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]));
  }
  return _mm512_add_epi32(_mm512_unpacklo_epi64(pairs[0], pairs[1]),
                          _mm512_unpackhi_epi64(pairs[0], pairs[1]));
}

// Sums of the 16 lanes of eight vectors, the i-th in lane i.
[[gnu::always_inline]] inline __m256i lane_sums(const __m512i* x) {
  const __m512i fours[2] = {quarter_sums(x), quarter_sums(x + 4)};
  // Quarters of rows 0-3 and of rows 4-7, added by halves.
  const __m512i eight =
      _mm512_add_epi32(_mm512_shuffle_i64x2(fours[0], fours[1], _MM_SHUFFLE(1, 0, 1, 0)),
                       _mm512_shuffle_i64x2(fours[0], fours[1], _MM_SHUFFLE(3, 2, 3, 2)));
  const __m512i ordered = _mm512_shuffle_i64x2(eight, eight, _MM_SHUFFLE(3, 1, 2, 0));
  return _mm256_add_epi32(_mm512_castsi512_si256(ordered), _mm512_extracti64x4_epi64(ordered, 1));
}

#include "kernels/avx512/kernels_integer_avx512.inc"
#include "kernels/generic/kernels_mixers.inc"

constexpr int kPairs = kRowsPerGroup / 2;  // vectors of a group's block

__m512i splat_block(const void* p) {
  return _mm512_broadcast_i64x4(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}
__m512i splat_byte(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }

// Those of eight rows that exist if n do from the first one on.
__mmask8 rows_below(int n) {
  return static_cast<__mmask8>(n >= kRowsPerGroup ? 0xff : n > 0 ? (1 << n) - 1 : 0);
}

// clang-format off
#include "kernels/generic/table_matmul.inc"
#include "kernels/avx512/turned_matmul_avx512.inc"
// clang-format on

// int32 budget: a lane adds 4 products of a code in its place in a nibble (at most 12) and an
// activation for every 32 columns of a block's 32 bytes; below 2^24 columns that is less than 2^31.
//
// Write the outputs of kVectors vectors for each of 8 / kVectors tokens from the n-th on. A vector
// has the sums of two rows in eight lanes each, and the first one those of rows `row` and row + 1.
template <typename Kind, int kVectors>
void write_rows(const __m512i* sums, const BitMatrix& w, const QuantizedRows& x, int row, int n,
                float* y, ptrdiff_t y_stride) {
  constexpr int kTokens = 8 / kVectors;
  constexpr __mmask16 kAllTokens = (1 << kTokens) - 1;
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i token = _mm512_srli_epi32(lanes, kVectors == 4 ? 3 : 2);
  const __m512i first = quarter_sums(sums), second = quarter_sums(sums + 4);
  const __m512i halves =
      _mm512_add_epi32(_mm512_shuffle_i64x2(first, second, _MM_SHUFFLE(2, 0, 2, 0)),
                       _mm512_shuffle_i64x2(first, second, _MM_SHUFFLE(3, 1, 3, 1)));
  // Even rows in one quarter and odd rows in the next: by token, then by row.
  const __m512i ordered = _mm512_permutexvar_epi32(
      _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15), halves);
  const __m512i input_sums =
      _mm512_permutexvar_epi32(token, _mm512_maskz_loadu_epi32(kAllTokens, x.sums + n));
  const __m512 scales =
      _mm512_permutexvar_ps(token, _mm512_maskz_loadu_ps(kAllTokens, x.scales + n));
  const __m512i products =
      _mm512_sub_epi32(_mm512_slli_epi32(ordered, Kind::kFactor / 2), input_sums);
  const __m512 scaled =
      _mm512_mul_ps(_mm512_cvtepi32_ps(products), _mm512_mul_ps(scales, _mm512_set1_ps(w.scale)));
  const __mmask8 rows = rows_below(w.m - row);
  y += n * y_stride + row;
  if constexpr (kVectors == 4) {
    _mm256_mask_storeu_ps(y, rows, _mm512_castps512_ps256(scaled));
    _mm256_mask_storeu_ps(y + y_stride, rows, _mm512_extractf32x8_ps(scaled, 1));
  } else {
    _mm_mask_storeu_ps(y, rows, _mm512_castps512_ps128(scaled));
    _mm_mask_storeu_ps(y + y_stride, rows, _mm512_extractf32x4_ps(scaled, 1));
    _mm_mask_storeu_ps(y + 2 * y_stride, rows, _mm512_extractf32x4_ps(scaled, 2));
    _mm_mask_storeu_ps(y + 3 * y_stride, rows, _mm512_extractf32x4_ps(scaled, 3));
  }
}

// The same for one token and a whole group.
template <typename Kind>
void write_token(const __m512i* sums, const BitMatrix& w, const QuantizedRows& x, int row, int n,
                 float* y) {
  const __m512i fours = quarter_sums(sums);  // even rows twice, odd rows twice
  const __m512i halves =
      _mm512_add_epi32(fours, _mm512_shuffle_i64x2(fours, fours, _MM_SHUFFLE(2, 3, 0, 1)));
  const __m512i order = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 0, 0, 0, 0, 0, 0, 0, 0);
  const __m256i all = _mm512_castsi512_si256(_mm512_permutexvar_epi32(order, halves));
  const __m256i products =
      _mm256_sub_epi32(_mm256_slli_epi32(all, Kind::kFactor / 2), _mm256_set1_epi32(x.sums[n]));
  const __m256 scaled =
      _mm256_mul_ps(_mm256_cvtepi32_ps(products), _mm256_set1_ps(x.scales[n] * w.scale));
  _mm256_mask_storeu_ps(y + row, rows_below(w.m - row), scaled);
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
        if (half == 0) __builtin_prefetch(codes + 64 * i + kPrefetchBytes);
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
  write_token<Kind>(sums[0], w, x, group * kRowsPerGroup, n, y);
}

// kVectors of a group's vectors, from the first on, by kTokens tokens: every unpacked vector of
// codes serves all of them.
template <typename Kind, int kTokens, int kVectors>
void matmul_vectors(const BitMatrix& w, const QuantizedRows& x, int group, int first, int n,
                    float* y, ptrdiff_t y_stride) {
  const size_t block_bytes = kRowsPerGroup * kBlockBytes;
  const int row = group * kRowsPerGroup + 2 * first;
  const uint8_t* codes =
      w.codes + static_cast<size_t>(group) * w.n_blocks * block_bytes + 64 * first;
  const int8_t* inputs = x.codes + static_cast<size_t>(n) * x.stride;
  const __m512i mask = splat_byte((1 << Kind::kBits) - 1);
  __m512i sums[kTokens][kVectors];
  for (auto& token : sums) {
    for (__m512i& sum : token) sum = _mm512_setzero_si512();
  }
  int block = 0;
  do {  // there is one at least: GCC need not keep sums in memory for none
    __m512i packed[kVectors];
    for (int i = 0; i < kVectors; ++i) {
      packed[i] = load_pair(codes + 64 * i);
      __builtin_prefetch(codes + 64 * i + kPrefetchBytes);
    }
#pragma GCC unroll 8
    for (int place = 0; place < 8 / Kind::kBits; ++place, inputs += kBlockBytes) {
      __m512i unpacked[kVectors];
      for (int i = 0; i < kVectors; ++i) {
        unpacked[i] = _mm512_and_si512(packed[i], mask);
        packed[i] = _mm512_srli_epi16(packed[i], Kind::kBits);
      }
      for (int t = 0; t < kTokens; ++t) {
        const __m512i xs = splat_block(inputs + static_cast<size_t>(t) * x.stride);
        for (int i = 0; i < kVectors; ++i) {
          sums[t][i] = _mm512_dpbusd_epi32(sums[t][i], unpacked[i], xs);
        }
      }
    }
    codes += block_bytes;
  } while (++block < w.n_blocks);
  constexpr int kTogether = 8 / kVectors;
  int t = 0;
  for (; t + kTogether <= kTokens; t += kTogether) {
    write_rows<Kind, kVectors>(sums[t], w, x, row, n + t, y, y_stride);
  }
  for (; t < kTokens; ++t) write_token<Kind>(sums[t], w, x, row, n + t, y + (n + t) * y_stride);
}

template <typename Kind, int kTokens>
void matmul_group(const BitMatrix& w, const QuantizedRows& x, int group, int n, float* y,
                  ptrdiff_t y_stride) {
  constexpr int kVectors = kTokens > 4 ? kPairs / 2 : kPairs;  // whose sums registers hold
  for (int i = 0; i < kPairs; i += kVectors) {
    matmul_vectors<Kind, kTokens, kVectors>(w, x, group, i, n, y, y_stride);
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

// Fewer tokens do not pay for turning the codes, nor fewer rows for tables of the inputs.
constexpr int kLeastTokens = 16, kLeastGroups = 256;

template <typename Kind>
void bit_matmul(const BitMatrix& w, const QuantizedRows& x, int group_begin, int group_end,
                float* y, ptrdiff_t y_stride) {
  // With ternary weights tables save less: where VNNI multiplies whole vectors twice a cycle it is
  // faster. Zen 4 does so once; there tables were faster when last measured.
  const bool uses_tables =
      (Kind::kBits == 1 && group_end - group_begin >= kLeastGroups) || __builtin_cpu_is("amd");
  int token = 0;
  for (; uses_tables && token + kTokenBlock <= x.n; token += kTokenBlock) {
    table_matmul<Kind, TokenSums>(w, x, token, kTokenBlock, group_begin, group_end, y, y_stride);
  }
  int group = group_begin;
  if (x.n - token >= kLeastTokens) {
    for (; group + kTurnedGroups <= group_end; group += kTurnedGroups) {
      turned_matmul<Kind>(w, x, group, token, y, y_stride);
    }
  }
  for (; group < group_end; ++group) {
    int n = token;
    for (; n + 8 <= x.n; n += 8) matmul_group<Kind, 8>(w, x, group, n, y, y_stride);
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

#include "kernels/avx512/head_matmul_avx512.inc"
#include "kernels/avx512/training_avx512.inc"

}  // namespace

#define YOCOBIT_KERNEL_TABLE kAvx512Kernels
#define YOCOBIT_TRAINING_TABLE kAvx512Training
#define YOCOBIT_KERNEL_NAME "avx512"
#include "kernels/kernel_table.inc"
#define YOCOBIT_ROW_TABLE kAvx512Rows
#include "kernels/generic/row_kernels.inc"
#include "kernels/training_table.inc"

}  // namespace yocobit
