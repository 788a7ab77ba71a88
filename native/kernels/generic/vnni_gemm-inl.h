// VNNI-interleaved GEMM for batches of tokens with ternary and sign weights: the codes of some
// groups are unpacked once, for all tokens, and transposed so that each lane accumulates one output
// row. Multiply-adds are nearly all that is left to do, and nothing is summed across lanes.
//
// A family's `Rows` describes vectors whose lanes are the rows of kGroups groups:
//   kVectors, kTokens              of a register tile
//   transpose(codes, group_bytes, columns)
//                                  columns[c], bytes 4c to 4c + 3 of a block of each row
//   dot(sum, codes, x)             each lane: sum + four products of bytes
//   write<Format>(sum, w, x, row, n, y)
//                                  the outputs of a token and the vector's rows, from `row` on
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/generic/low_bit-inl.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// The low n bits of each byte.
template <typename Rows>
YOCOBIT_INLINE typename Rows::Vector low_bits(typename Rows::Vector x, int n) {
  typedef uint8_t Bytes __attribute__((vector_size(sizeof x)));
  const uint8_t mask = static_cast<uint8_t>((1 << n) - 1);
  return (typename Rows::Vector)((Bytes)x & mask);
}

// Of pairs of bytes.
template <typename Rows>
YOCOBIT_INLINE typename Rows::Vector shift_right(typename Rows::Vector x, int n) {
  typedef uint16_t Pairs __attribute__((vector_size(sizeof x)));
  return (typename Rows::Vector)((Pairs)x >> static_cast<uint16_t>(n));
}

// Four bytes in each lane.
template <typename Rows>
YOCOBIT_INLINE typename Rows::Vector splat_four(const int8_t* p) {
  typedef int32_t Fours __attribute__((vector_size(sizeof(typename Rows::Vector))));
  int32_t four;
  __builtin_memcpy(&four, p, sizeof four);
  return (typename Rows::Vector)(Fours{} + four);
}

template <typename Rows>
constexpr int kVnniGroups = Rows::kGroups * Rows::kVectors;
constexpr int kVnniColumns = 512;  // whose codes stay in the first-level cache
constexpr int kVnniTokens = 128;   // whose sums do, in the second-level one

// The codes of some blocks of kVnniGroups groups, a byte each: for every four columns kVectors
// vectors, of [rows][4 columns].
template <typename Rows, typename Format>
void pack_vnni(const uint8_t* codes, size_t group_bytes, int n_blocks,
               typename Rows::Vector* vnni) {
  constexpr int kVectors = Rows::kVectors;
  for (int block = 0; block < n_blocks; ++block, codes += kRowsPerGroup * kBlockBytes) {
    for (int v = 0; v < kVectors; ++v) {
      typename Rows::Vector columns[8];
      Rows::transpose(codes + v * Rows::kGroups * group_bytes, group_bytes, columns);
#pragma GCC unroll 8
      for (int field = 0; field < Format::kColumns; ++field) {
#pragma GCC unroll 8
        for (int c = 0; c < 8; ++c) {
          vnni[(8 * field + c) * kVectors + v] = low_bits<Rows>(columns[c], Format::kBits);
          columns[c] = shift_right<Rows>(columns[c], Format::kBits);
        }
      }
    }
    vnni += 8 * Format::kColumns * kVectors;
  }
}

// Prefetch a block of each of kVnniGroups groups.
template <typename Rows>
YOCOBIT_INLINE void prefetch_block(const uint8_t* codes, size_t group_bytes) {
#pragma GCC unroll 4
  for (int group = 0; group < kVnniGroups<Rows>; ++group) {
#pragma GCC unroll 4
    for (int byte = 0; byte < kRowsPerGroup * kBlockBytes; byte += kCacheLine) {
      __builtin_prefetch(codes + group * group_bytes + byte);
    }
  }
}

// Add to the sums [kTokens][kVectors] what the blocks contribute. Loops over sums are unrolled by
// pragma: otherwise GCC keeps them in memory.
template <typename Rows, typename Format, int kTokens>
[[gnu::noinline]] void add_vnni(const typename Rows::Vector* vnni, int n_blocks,
                                const int8_t* inputs, ptrdiff_t stride, const uint8_t* next,
                                size_t group_bytes, typename Rows::Vector* totals) {
  constexpr int kVectors = Rows::kVectors;
  typename Rows::Vector sums[kTokens][kVectors];
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[t][v] = totals[t * kVectors + v];
  }
  do {
    if (next) {
      prefetch_block<Rows>(next, group_bytes);
      next += kRowsPerGroup * kBlockBytes;
    }
    const int8_t* end = inputs + kBlockColumns<Format>;
    do {
      typename Rows::Vector weights[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) weights[v] = vnni[v];
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        const auto xs = splat_four<Rows>(inputs + t * stride);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sums[t][v] = Rows::dot(sums[t][v], weights[v], xs);
      }
      vnni += kVectors;
      inputs += 4;
    } while (inputs < end);
  } while (--n_blocks > 0);
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) totals[t * kVectors + v] = sums[t][v];
  }
}

// kVnniGroups groups by at most kVnniTokens tokens.
template <typename Rows, typename Format>
void vnni_tile(const BitMatrix& w, const Int8Rows& x, int group, int begin, int end, float* y,
               ptrdiff_t y_stride) {
  constexpr int kVectors = Rows::kVectors;
  constexpr int kColumns = kBlockColumns<Format>, kBlocks = kVnniColumns / kColumns;
  const size_t group_bytes = static_cast<size_t>(w.n_blocks) * kRowsPerGroup * kBlockBytes;
  typename Rows::Vector vnni[kVnniColumns / 4 * kVectors];
  typename Rows::Vector totals[kVnniTokens * kVectors];
  for (int i = 0; i < (end - begin) * kVectors; ++i) totals[i] = typename Rows::Vector{};
  for (int block = 0; block < w.n_blocks; block += kBlocks) {
    const int n_blocks = w.n_blocks - block < kBlocks ? w.n_blocks - block : kBlocks;
    const uint8_t* codes =
        w.codes + group * group_bytes + static_cast<size_t>(block) * kRowsPerGroup * kBlockBytes;
    pack_vnni<Rows, Format>(codes, group_bytes, n_blocks, vnni);
    const uint8_t* next = codes + kVnniGroups<Rows> * group_bytes;
    const int8_t* inputs = x.codes + static_cast<size_t>(begin) * x.stride + block * kColumns;
    int n = 0;
    const auto add = [&]<int kTokens>() {
      for (; n + kTokens <= end - begin; n += kTokens) {
        add_vnni<Rows, Format, kTokens>(vnni, n_blocks, inputs + static_cast<size_t>(n) * x.stride,
                                        x.stride, n == 0 ? next : nullptr, group_bytes,
                                        totals + n * kVectors);
      }
    };
    add.template operator()<Rows::kTokens>();
    if constexpr (Rows::kTokens > 4) add.template operator()<4>();
    add.template operator()<2>();
    add.template operator()<1>();
  }
  constexpr int kRows = Rows::kGroups * kRowsPerGroup;  // of a vector
  for (int n = begin; n < end; ++n) {
    const typename Rows::Vector* sums = totals + (n - begin) * kVectors;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      Rows::template write<Format>(sums[v], w, x, group * kRowsPerGroup + v * kRows, n,
                                   y + n * y_stride);
    }
  }
}

// kVnniGroups groups by all tokens from the given one on.
template <typename Rows, typename Format>
void vnni_gemm(const BitMatrix& w, const Int8Rows& x, int group, int token, float* y,
               ptrdiff_t y_stride) {
  for (; token < x.n; token += kVnniTokens) {
    const int end = x.n - token < kVnniTokens ? x.n : token + kVnniTokens;
    vnni_tile<Rows, Format>(w, x, group, token, end, y, y_stride);
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
