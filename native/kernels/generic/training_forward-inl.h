// Training, forward: rounding of activations, packing of master weights and the LUT GEMM.
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/generic/lut_gemm-inl.h"
#include "kernels/generic/rounding-inl.h"
#include "kernels/training_kernels.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

void quantize_rows(const float* x, int k, int stride, int begin, int end, int8_t* codes,
                   float* scales) {
  for (int n = begin; n < end; ++n) {
    const float* row = x + static_cast<size_t>(n) * k;
    int8_t* out = codes + static_cast<size_t>(n) * stride;
    I32x8 largest_bits = splat_i32(0);
    for (int i = 0; i < k; i += kLanes) {
      largest_bits = max(largest_bits, magnitude_bits(load_first(row + i, k - i)));
    }
    int32_t each[kLanes];
    store(each, largest_bits);
    uint32_t largest = 0;
    for (const int32_t bits : each) {
      if (static_cast<uint32_t>(bits) > largest) largest = static_cast<uint32_t>(bits);
    }
    const Rounding rounding(largest, kSmallestAbsmax, 127);
    scales[n] = rounding.scale;
    int i = 0;
    if (rounding.factor != 0.0f) {
      for (; i < k; i += kLanes) {
        store_codes(out + i, mul(load_first(row + i, k - i), splat(rounding.factor)));
      }
    }
    if (i < stride) __builtin_memset(out + i, 0, stride - i);
  }
}

// Eight values as digits: 0, 1, 2 for ternary weights -1, 0, +1; 0 and plus for sign weights.
template <bool is_ternary, int plus>
I32x8 digits(const F32x8& values, const MasterWeight& weight) {
  if constexpr (is_ternary) {
    const F32x8 q = div(values, splat(weight.scale));
    const I32x8 is_above = greater(q, splat(0.5f)), is_below = greater(splat(-0.5f), q);
    return add(sub(is_below, is_above), splat_i32(1));
  } else {
    const I32x8 is_above = greater(values, splat(weight.mean));
    return plus == 1 ? sub(splat_i32(0), is_above) : sub(sub(splat_i32(0), is_above), is_above);
  }
}

// The digits of 32 values of a row; those from n on are as of values 0.
template <bool is_ternary, int plus>
U8x32 digits_of_32(const float* values, int n, const MasterWeight& weight) {
  I32x8 quarters[4];
  for (int i = 0; i < 4; ++i) {
    const F32x8 eight = load_first(values + kLanes * i, n - kLanes * i);
    quarters[i] = digits<is_ternary, plus>(eight, weight);
  }
  return to_bytes(quarters);
}

// One block of one row.
template <bool is_ternary>
U8x32 packed_block(const float* values, int n, const MasterWeight& weight) {
  constexpr int kColumns = is_ternary ? Ternary::kColumns : Sign::kColumns;
  U8x32 bytes = splat_u8(0);
#pragma GCC unroll 8
  for (int c = 0; c < kColumns; ++c) {
    const int first = c * kBlockBytes;
    const U8x32 codes = digits_of_32<is_ternary, 1>(values + first, n - first, weight);
    bytes = bit_or(bytes, shift_left(codes, 8 / kColumns * c));  // 2 << 6 fits a byte
  }
  return bytes;
}

template <bool is_ternary>
void pack_groups(const MasterWeights& p, int begin, int end, uint8_t* codes) {
  constexpr int kColumns = is_ternary ? kTernaryBlock : kSignBlock;
  const int blocks = n_blocks(p);
  int first_group = 0;
  for (int i = 0; i < p.n_weights; first_group += n_groups(p.weights[i]), ++i) {
    const MasterWeight& weight = p.weights[i];
    const int last = first_group + n_groups(weight);
    for (int group = begin > first_group ? begin : first_group; group < end && group < last;
         ++group) {
      uint8_t* out = codes + static_cast<size_t>(group) * blocks * kRowsPerGroup * kBlockBytes;
      for (int block = 0; block < blocks; ++block) {
        for (int r = 0; r < kRowsPerGroup; ++r, out += kBlockBytes) {
          const int m = (group - first_group) * kRowsPerGroup + r, k = block * kColumns;
          const float* row = weight.values + static_cast<size_t>(m) * p.k;
          store(out, m < weight.m ? packed_block<is_ternary>(row + k, p.k - k, weight)
                                  : splat_u8(is_ternary ? 0x55 : 0));
        }
      }
    }
  }
}

void pack(const MasterWeights& p, int begin, int end, uint8_t* codes) {
  p.is_ternary ? pack_groups<true>(p, begin, end, codes) : pack_groups<false>(p, begin, end, codes);
}

// All weights by a tile of tokens at once: they share its tables.
void project(const MasterWeights& p, const uint8_t* codes, const Int8Rows& x, int begin, int end,
             float* const* ys) {
  using Sums = I16Sums<kTokenBlock>;
  const int groups = n_groups(p);
  const BitMatrix w = {
      .codes = codes, .m = groups * kRowsPerGroup, .n_blocks = n_blocks(p), .scale = 1.0f};
  for (int token = begin; token < end; token += kTokenBlock) {
    const int n = end - token < kTokenBlock ? end - token : kTokenBlock;
    const auto write = [&](int group, const int32_t (*totals)[kTokenBlock]) {
      const auto [i, m] = rows_of_group(p, group);
      const MasterWeight& weight = p.weights[i];
      const int n_rows = weight.m - m < kRowsPerGroup ? weight.m - m : kRowsPerGroup;
      write_group<kTokenBlock>(totals, n_rows, x.scales + token, splat(weight.scale), n,
                               ys[i] + static_cast<ptrdiff_t>(token) * weight.m + m, weight.m);
    };
    p.is_ternary ? lut_tiles<Ternary, Sums>(w, x, token, n, 0, groups, write)
                 : lut_tiles<Sign, Sums>(w, x, token, n, 0, groups, write);
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
