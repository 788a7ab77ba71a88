// GEMV, and GEMM in register tiles of a few tokens, with ternary and sign weights: VNNI over codes
// as they are stored. A 512-bit vector of packed codes is one block of two rows.
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/avx512/vectors.h"
#include "kernels/generic/low_bit-inl.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

inline __m512i load_pair(const uint8_t* p) { return _mm512_loadu_si512(p); }

constexpr int kPairs = kRowsPerGroup / 2;  // vectors of a group's block

inline __m512i splat_block(const void* p) {
  return _mm512_broadcast_i64x4(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}
inline __m512i splat_byte(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }

// Write the outputs of kVectors vectors for each of 8 / kVectors tokens from the n-th on. A vector
// has the sums of two rows in eight lanes each, and the first one those of rows `row` and row + 1.
template <typename Format, int kVectors>
void write_rows(const __m512i* sums, const BitMatrix& w, const Int8Rows& x, int row, int n,
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
  const __m512 row_scales =
      kVectors == 4 ? _mm512_broadcast_f32x8(scales_of(w, row).v)
                    : _mm512_broadcast_f32x4(_mm256_castps256_ps128(scales_of(w, row).v));
  const __m512i products = _mm512_sub_epi32(_mm512_slli_epi32(ordered, Format::kShift), input_sums);
  const __m512 scaled =
      _mm512_mul_ps(_mm512_cvtepi32_ps(products), _mm512_mul_ps(scales, row_scales));
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
template <typename Format>
void write_token(const __m512i* sums, const BitMatrix& w, const Int8Rows& x, int row, int n,
                 float* y) {
  const __m512i fours = quarter_sums(sums);  // even rows twice, odd rows twice
  const __m512i halves =
      _mm512_add_epi32(fours, _mm512_shuffle_i64x2(fours, fours, _MM_SHUFFLE(2, 3, 0, 1)));
  const __m512i order = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 0, 0, 0, 0, 0, 0, 0, 0);
  const __m256i all = _mm512_castsi512_si256(_mm512_permutexvar_epi32(order, halves));
  const __m256i products =
      _mm256_sub_epi32(_mm256_slli_epi32(all, Format::kShift), _mm256_set1_epi32(x.sums[n]));
  const __m256 scaled =
      _mm256_mul_ps(_mm256_cvtepi32_ps(products),
                    _mm256_mul_ps(_mm256_set1_ps(x.scales[n]), scales_of(w, row).v));
  _mm256_mask_storeu_ps(y + row, rows_below(w.m - row), scaled);
}

// GEMV: a group by one token. Codes stay in their bit fields of the nibbles: each field has sums of
// its own, shifted down at the end.
//
// int32 budget: a lane adds 4 products of a code in its bit field of a nibble (at most 12) and an
// activation for every 32 columns of a block's 32 bytes; below 2^24 columns that is less than 2^31.
template <typename Format>
void gemv_group(const BitMatrix& w, const Int8Rows& x, int group, int n, float* y) {
  constexpr int kFields = 4 / Format::kBits, kMask = (1 << Format::kBits) - 1;
  const size_t block_bytes = kRowsPerGroup * kBlockBytes;
  const uint8_t* codes = w.codes + static_cast<size_t>(group) * w.n_blocks * block_bytes;
  const int8_t* inputs = x.codes + static_cast<size_t>(n) * x.stride;
  __m512i sums[kFields][kPairs];
  for (auto& field : sums) {
    for (__m512i& sum : field) sum = _mm512_setzero_si512();
  }
  for (int block = 0; block < w.n_blocks; ++block, codes += block_bytes) {
    for (int half = 0; half < 2; ++half) {
      __m512i packed[kPairs];
      for (int i = 0; i < kPairs; ++i) {
        packed[i] = load_pair(codes + 64 * i);
        if (half == 0) __builtin_prefetch(codes + 64 * i + kPrefetchBytes);
        if (half == 1) packed[i] = _mm512_srli_epi16(packed[i], 4);
      }
      for (int field = 0; field < kFields; ++field, inputs += kBlockBytes) {
        const __m512i xs = splat_block(inputs);
        const __m512i mask = splat_byte(kMask << (field * Format::kBits));
        for (int i = 0; i < kPairs; ++i) {
          sums[field][i] =
              _mm512_dpbusd_epi32(sums[field][i], _mm512_and_si512(packed[i], mask), xs);
        }
      }
    }
  }
  for (int field = 1; field < kFields; ++field) {
    for (int i = 0; i < kPairs; ++i) {
      const __m512i shifted = _mm512_srai_epi32(sums[field][i], field * Format::kBits);
      sums[0][i] = _mm512_add_epi32(sums[0][i], shifted);
    }
  }
  write_token<Format>(sums[0], w, x, group * kRowsPerGroup, n, y);
}

// kVectors of a group's vectors, from the first on, by kTokens tokens: every unpacked vector of
// codes serves all of them.
template <typename Format, int kTokens, int kVectors>
void gemm_vectors(const BitMatrix& w, const Int8Rows& x, int group, int first, int n, float* y,
                  ptrdiff_t y_stride) {
  const size_t block_bytes = kRowsPerGroup * kBlockBytes;
  const int row = group * kRowsPerGroup + 2 * first;
  const uint8_t* codes =
      w.codes + static_cast<size_t>(group) * w.n_blocks * block_bytes + 64 * first;
  const int8_t* inputs = x.codes + static_cast<size_t>(n) * x.stride;
  const __m512i mask = splat_byte((1 << Format::kBits) - 1);
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
    for (int field = 0; field < 8 / Format::kBits; ++field, inputs += kBlockBytes) {
      __m512i unpacked[kVectors];
      for (int i = 0; i < kVectors; ++i) {
        unpacked[i] = _mm512_and_si512(packed[i], mask);
        packed[i] = _mm512_srli_epi16(packed[i], Format::kBits);
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
    write_rows<Format, kVectors>(sums[t], w, x, row, n + t, y, y_stride);
  }
  if constexpr (kTokens % kTogether != 0) {
    for (; t < kTokens; ++t) write_token<Format>(sums[t], w, x, row, n + t, y + (n + t) * y_stride);
  }
}

template <typename Format, int kTokens>
void gemm_group(const BitMatrix& w, const Int8Rows& x, int group, int n, float* y,
                ptrdiff_t y_stride) {
  constexpr int kVectors = kTokens > 4 ? kPairs / 2 : kPairs;  // whose sums fit the registers
  for (int i = 0; i < kPairs; i += kVectors) {
    gemm_vectors<Format, kTokens, kVectors>(w, x, group, i, n, y, y_stride);
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
