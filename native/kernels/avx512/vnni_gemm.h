// VNNI-interleaved GEMM for batches of tokens with ternary and sign weights: the codes of four
// groups are unpacked once, for all tokens, and transposed so that each lane accumulates one output
// row. Multiply-adds are nearly all that is left to do, and nothing is summed across lanes.
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/avx512/dot_gemm.h"
#include "kernels/avx512/vectors.h"
#include "kernels/generic/low_bit-inl.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

constexpr int kVnniGroups = 4;
constexpr int kVnniVectors = kVnniGroups * kRowsPerGroup / 16;
constexpr int kVnniColumns = 512;  // whose codes stay in the first-level cache
constexpr int kVnniTokens = 128;   // whose sums do, in the second-level one

// The codes of some blocks of kVnniGroups groups, a byte each: for every four columns
// kVnniVectors vectors, of [16 rows][4 columns].
template <typename Format>
void pack_vnni(const uint8_t* codes, size_t group_bytes, int n_blocks, __m512i* vnni) {
  const __m512i mask = splat_byte((1 << Format::kBits) - 1);
  for (int block = 0; block < n_blocks; ++block, codes += kRowsPerGroup * kBlockBytes) {
    for (int v = 0; v < kVnniVectors; ++v) {
      const uint8_t* first = codes + 2 * v * group_bytes;
      __m512i columns[8];
      transpose_rows(first, first + group_bytes, columns);
#pragma GCC unroll 8
      for (int field = 0; field < Format::kColumns; ++field) {
#pragma GCC unroll 8
        for (int c = 0; c < 8; ++c) {
          vnni[(8 * field + c) * kVnniVectors + v] = _mm512_and_si512(columns[c], mask);
          columns[c] = _mm512_srli_epi16(columns[c], Format::kBits);
        }
      }
    }
    vnni += 8 * Format::kColumns * kVnniVectors;
  }
}

// Prefetch a block of each of kVnniGroups groups.
inline void prefetch_block(const uint8_t* codes, size_t group_bytes) {
#pragma GCC unroll 4
  for (int group = 0; group < kVnniGroups; ++group) {
#pragma GCC unroll 4
    for (int byte = 0; byte < kRowsPerGroup * kBlockBytes; byte += kCacheLine) {
      __builtin_prefetch(codes + group * group_bytes + byte);
    }
  }
}

// Add to the sums [kTokens][kVnniVectors] what the blocks contribute. Loops over sums are
// unrolled by pragma: otherwise GCC keeps them in memory.
template <typename Format, int kTokens>
[[gnu::noinline]] void add_vnni(const __m512i* vnni, int n_blocks, const int8_t* inputs,
                                ptrdiff_t stride, const uint8_t* next, size_t group_bytes,
                                __m512i* totals) {
  __m512i sums[kTokens][kVnniVectors];
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 8
    for (int v = 0; v < kVnniVectors; ++v) sums[t][v] = totals[t * kVnniVectors + v];
  }
  do {
    if (next) {
      prefetch_block(next, group_bytes);
      next += kRowsPerGroup * kBlockBytes;
    }
    const int8_t* end = inputs + kBlockColumns<Format>;
    do {
      const __m512i weights[kVnniVectors] = {vnni[0], vnni[1]};
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        int32_t four;
        __builtin_memcpy(&four, inputs + t * stride, sizeof four);
        const __m512i xs = _mm512_set1_epi32(four);
#pragma GCC unroll 8
        for (int v = 0; v < kVnniVectors; ++v) multiply_add(sums[t][v], weights[v], xs);
      }
      vnni += kVnniVectors;
      inputs += 4;
    } while (inputs < end);
  } while (--n_blocks > 0);
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 8
    for (int v = 0; v < kVnniVectors; ++v) totals[t * kVnniVectors + v] = sums[t][v];
  }
}

// Write the outputs of a token: the lanes hold rows 0-3 of two groups, then their rows 4-7.
template <typename Format>
void write_vnni(const __m512i* totals, const BitMatrix& w, const Int8Rows& x, int row, int n,
                float* y) {
  const __m512i input_sum = _mm512_set1_epi32(x.sums[n]);
  const __m512 x_scale = _mm512_set1_ps(x.scales[n]);
  for (int v = 0; v < kVnniVectors; ++v, row += 16) {
    const __m512i ordered = _mm512_shuffle_i64x2(totals[v], totals[v], _MM_SHUFFLE(3, 1, 2, 0));
    const __m512i product =
        _mm512_sub_epi32(_mm512_slli_epi32(ordered, Format::kFactor / 2), input_sum);
    const __mmask16 rows = lanes_below(w.m - row);
    const __m512 scales =
        w.row_scales ? _mm512_maskz_loadu_ps(rows, w.row_scales + row) : _mm512_set1_ps(w.scale);
    _mm512_mask_storeu_ps(
        y + row, rows, _mm512_mul_ps(_mm512_cvtepi32_ps(product), _mm512_mul_ps(x_scale, scales)));
  }
}

// kVnniGroups groups by at most kVnniTokens tokens.
template <typename Format>
void vnni_tile(const BitMatrix& w, const Int8Rows& x, int group, int begin, int end, float* y,
               ptrdiff_t y_stride) {
  constexpr int kColumns = kBlockColumns<Format>, kBlocks = kVnniColumns / kColumns;
  const size_t group_bytes = static_cast<size_t>(w.n_blocks) * kRowsPerGroup * kBlockBytes;
  __m512i vnni[kVnniColumns / 4 * kVnniVectors];
  __m512i totals[kVnniTokens * kVnniVectors];
  for (int i = 0; i < (end - begin) * kVnniVectors; ++i) totals[i] = _mm512_setzero_si512();
  for (int block = 0; block < w.n_blocks; block += kBlocks) {
    const int n_blocks = w.n_blocks - block < kBlocks ? w.n_blocks - block : kBlocks;
    const uint8_t* codes =
        w.codes + group * group_bytes + static_cast<size_t>(block) * kRowsPerGroup * kBlockBytes;
    pack_vnni<Format>(codes, group_bytes, n_blocks, vnni);
    const uint8_t* next = codes + kVnniGroups * group_bytes;
    const int8_t* inputs = x.codes + static_cast<size_t>(begin) * x.stride + block * kColumns;
    int n = 0;
    const auto add = [&]<int kTokens>() {
      for (; n + kTokens <= end - begin; n += kTokens) {
        add_vnni<Format, kTokens>(vnni, n_blocks, inputs + static_cast<size_t>(n) * x.stride,
                                  x.stride, n == 0 ? next : nullptr, group_bytes,
                                  totals + n * kVnniVectors);
      }
    };
    add.template operator()<8>();
    add.template operator()<4>();
    add.template operator()<2>();
    add.template operator()<1>();
  }
  for (int n = begin; n < end; ++n) {
    write_vnni<Format>(totals + (n - begin) * kVnniVectors, w, x, group * kRowsPerGroup, n,
                       y + n * y_stride);
  }
}

// kVnniGroups groups by all tokens from the given one on.
template <typename Format>
void vnni_gemm(const BitMatrix& w, const Int8Rows& x, int group, int token, float* y,
               ptrdiff_t y_stride) {
  for (; token < x.n; token += kVnniTokens) {
    const int end = x.n - token < kVnniTokens ? x.n : token + kVnniTokens;
    vnni_tile<Format>(w, x, group, token, end, y, y_stride);
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
