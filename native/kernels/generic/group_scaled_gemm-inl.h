// GEMV and GEMM of group-scaled weights by grouped activations, in register tiles of a few tokens.
// Each lane accumulates one output row, so nothing is summed across lanes. Codes are unpacked once
// for all tokens of a tile.
//
// A family's `Lanes` has vectors of kGroups * 8 rows:
//   Codes load_codes(first, second)     one unit of each group; `second` is unused with one group
//   Codes field<bits>(codes, f)         the codes of bit field f, times 2^position<bits>(f)
//   Sums start(offset)                  accumulators: the offset if they are int32, otherwise 0
//   multiply_add(sums, codes, x)        add the products of four columns with x [4] int8
//   Ints int32_sums(sums, offset)       the sums of the 32 columns of a field, plus the offset
//                                       unless start() included it
//   add, times_128, splat, to_floats    of Ints;  Floats: F32x8 or F32xN
//   load_scales(first, second)          eight float16 of each group
//   load_floats, store_floats           of the first n rows
//   kSums                               accumulators that fit into the registers
//   kInputs                             rows of int8 in a tile: tokens times parts
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/formats.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// The values kFirst + kStep * code.
template <int bits, int first, int step>
struct ScaledCodes {
  static constexpr int kBits = bits, kFirst = first, kStep = step;
  static constexpr int kFields = 8 / bits;  // of a byte; each holds kActivationGroup columns
};

// Call run with the ScaledCodes of a matrix.
template <typename Run>
void with_format(const GroupScaledMatrix& w, const Run& run) {
  if (w.bits == 1) return run(ScaledCodes<1, -1, 2>{});
  if (w.step == 1) return run(ScaledCodes<2, -1, 1>{});
  run(ScaledCodes<2, -3, 2>{});
}

// The floats of `Lanes` of one group.
struct OneGroup {
  using Floats = F32x8;
  static constexpr int kGroups = 1;

  YOCOBIT_INLINE static Floats load_scales(const uint16_t* scales, const uint16_t*) {
    return load_f16(scales);
  }
  YOCOBIT_INLINE static Floats load_floats(const float* p, int n) { return load_first(p, n); }
  YOCOBIT_INLINE static void store_floats(float* p, const Floats& x, int n) {
    store_first(p, x, n);
  }
};

constexpr int kUnits = 8;        // of a block: four bytes of each row
constexpr int kUnitBytes = 32;   // of a group of rows
constexpr int kScaleFields = 4;  // bit fields with one scale of 128 columns, or two of 64
// Groups at least kPrefetchBytes ahead are prefetched into L2, in memory order. Two groups are read
// alternately, so the codes of each are also prefetched from L2 into L1, at this distance.
constexpr ptrdiff_t kNearPrefetchBytes = 512;

// The factor by which the sum of field f is too large: codes are multiplied by 2^position, and a
// step of 2 stands for one of these bits. At position 0 the sum is doubled instead.
template <typename Lanes, typename Format>
constexpr int field_factor(int f) {
  const int position = Lanes::template position<Format::kBits>(f);
  return position == 0 ? 1 : (1 << position) / Format::kStep;
}
template <typename Lanes, typename Format>
constexpr bool is_doubled(int f) {
  return Format::kStep == 2 && Lanes::template position<Format::kBits>(f) == 0;
}

// Of one token, for each field of a block: the offset that is added to the sum, and the activation
// scale that multiplies it, divided by field_factor. Both are exact.
template <typename Lanes, typename Format>
struct FieldScales {
  static constexpr int kFields = Format::kFields;
  // GCC's vector types: it does not vectorise loops of four or eight iterations.
  typedef int32_t Ints4 __attribute__((vector_size(16)));
  typedef int32_t Ints8 __attribute__((vector_size(32)));
  typedef float Floats4 __attribute__((vector_size(16)));
  typedef float Floats8 __attribute__((vector_size(32)));
  std::conditional_t<kFields == 8, Ints8, Ints4> offsets;
  std::conditional_t<kFields == 8, Floats8, Floats4> scales;

  YOCOBIT_INLINE void set(const int32_t* x_sums, const float* x_scales) {
    __builtin_memcpy(&offsets, x_sums, sizeof offsets);
    __builtin_memcpy(&scales, x_scales, sizeof scales);
    auto offset_factors = offsets;
    auto scale_factors = scales;
#pragma GCC unroll 8
    for (int f = 0; f < kFields; ++f) {
      constexpr auto factor = field_factor<Lanes, Format>;
      offset_factors[f] = -Format::kFirst * factor(f);
      scale_factors[f] = 1.0f / static_cast<float>(factor(f));
    }
    offsets *= offset_factors;
    scales *= scale_factors;
    asm("" : "+m"(*this));  // otherwise GCC extracts lanes, which is slower than loads
  }
};

// The first n_rows of kGroups groups by kTokens tokens.
//
// int32 budget: 32 products of a code in its field (at most 192) and an int8 are below 2^20. With
// two parts, 128 times that, that again, and an offset of at most 3 * 32 * 16383 * 64 stay below
// 2^28.
template <typename Lanes, typename Format, int kParts, int kTokens>
YOCOBIT_INLINE void group_scaled_tile(const GroupScaledMatrix& w, const GroupedRows& x, int group,
                                      int n_rows, int n, float* y, ptrdiff_t y_stride) {
  using Floats = typename Lanes::Floats;
  constexpr int kFields = Format::kFields;
  constexpr int kTogether = kFields * kTokens * kParts <= Lanes::kSums ? kFields : kScaleFields;
  constexpr int kBytes = kRowsPerGroup * kBlockBytes;  // of a block
  // The second group follows the first; a single group is computed twice.
  const ptrdiff_t group_bytes = static_cast<ptrdiff_t>(w.n_blocks) * kBytes;
  const ptrdiff_t second = n_rows > kRowsPerGroup ? group_bytes : 0;
  const uint8_t* codes = w.codes + group * group_bytes;
  const uint8_t* second_codes = codes + second;
  const auto n_ahead = Lanes::kGroups * (1 + kPrefetchBytes / (Lanes::kGroups * group_bytes));
  const uint8_t* next_codes = codes + n_ahead * group_bytes;

  const bool is_64 = w.group_columns == 64;
  const ptrdiff_t group_scales = static_cast<ptrdiff_t>(w.n_blocks) * (kFields / kScaleFields) *
                                 (is_64 ? 2 : 1) * kRowsPerGroup;
  const ptrdiff_t second_scales = second ? group_scales : 0;
  const uint16_t* scales = w.scales ? w.scales + group * group_scales : nullptr;
  const uint16_t* next_scales = scales ? scales + n_ahead * group_scales : nullptr;

  const ptrdiff_t x_groups = x.stride / kActivationGroup;
  const int8_t* inputs = x.codes + static_cast<ptrdiff_t>(n) * kParts * x.stride;
  const float* x_scales = x.scales + n * x_groups;
  const int32_t* x_sums = x.sums + n * x_groups;

  Floats totals[kTokens], parts[kTokens];
  for (int t = 0; t < kTokens; ++t) totals[t] = parts[t] = splat_like(Floats{}, 0.0f);
  const auto add_weight_group = [&]() __attribute__((always_inline)) {
    const Floats scale = Lanes::load_scales(scales, scales + second_scales);
    __builtin_prefetch(next_scales);
    scales += kRowsPerGroup;
    next_scales += Lanes::kGroups * kRowsPerGroup;
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      totals[t] = fma(scale, parts[t], totals[t]);
      parts[t] = splat_like(Floats{}, 0.0f);
    }
  };

  if (!scales) __builtin_prefetch(w.row_scales + (group + n_ahead) * kRowsPerGroup);

  int block = 0;
  do {
#pragma GCC unroll 8
    for (int byte = 0; byte < Lanes::kGroups * kBytes; byte += kCacheLine) {
      __builtin_prefetch(next_codes + byte, 0, 2);
    }
#pragma GCC unroll 4
    for (int byte = 0; byte < kBytes && Lanes::kGroups == 2; byte += kCacheLine) {
      __builtin_prefetch(codes + byte + kNearPrefetchBytes);
      __builtin_prefetch(second_codes + byte + kNearPrefetchBytes);
    }
    FieldScales<Lanes, Format> fields[kTokens];
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) fields[t].set(x_sums + t * x_groups, x_scales + t * x_groups);
#pragma GCC unroll 2
    for (int first = 0; first < kFields; first += kTogether) {
      // Otherwise GCC keeps the loaded codes of all units for the second pass.
      asm("" : "+r"(codes), "+r"(second_codes));
      typename Lanes::Sums sums[kTogether][kTokens][kParts];
#pragma GCC unroll 8
      for (int f = 0; f < kTogether; ++f) {
#pragma GCC unroll 8
        for (int t = 0; t < kTokens; ++t) {
          const bool has_offset = !is_doubled<Lanes, Format>(first + f);
          sums[f][t][0] = Lanes::start(0);
          sums[f][t][kParts - 1] = Lanes::start(has_offset ? fields[t].offsets[first + f] : 0);
        }
      }
#pragma GCC unroll 8
      for (int unit = 0; unit < kUnits; ++unit) {
        const auto packed =
            Lanes::load_codes(codes + unit * kUnitBytes, second_codes + unit * kUnitBytes);
#pragma GCC unroll 8
        for (int f = 0; f < kTogether; ++f) {
          const auto unpacked = Lanes::template field<Format::kBits>(packed, first + f);
#pragma GCC unroll 8
          for (int i = 0; i < kTokens * kParts; ++i) {
            Lanes::multiply_add(sums[f][i / kParts][i % kParts], unpacked,
                                inputs + i * x.stride + f * kActivationGroup + unit * 4);
          }
        }
      }
      inputs += kTogether * kActivationGroup;
#pragma GCC unroll 8
      for (int f = 0; f < kTogether; ++f) {
#pragma GCC unroll 8
        for (int t = 0; t < kTokens; ++t) {
          const bool has_offset = !is_doubled<Lanes, Format>(first + f);
          const int32_t offset = fields[t].offsets[first + f];
          auto sum = Lanes::int32_sums(sums[f][t][kParts - 1], has_offset ? offset : 0);
          if constexpr (kParts == 2) {
            sum = Lanes::add(Lanes::times_128(Lanes::int32_sums(sums[f][t][0], 0)), sum);
          }
          if (!has_offset) sum = Lanes::add(Lanes::add(sum, sum), Lanes::splat(offset));
          parts[t] = fma(splat_like(Floats{}, fields[t].scales[first + f]), Lanes::to_floats(sum),
                         parts[t]);
        }
        if (f % kScaleFields == 1 && is_64) add_weight_group();
        if (f % kScaleFields == 3 && scales) add_weight_group();
      }
    }
    x_scales += kFields;
    x_sums += kFields;
    codes += kBytes;
    second_codes += kBytes;
    next_codes += Lanes::kGroups * kBytes;
  } while (++block < w.n_blocks);

  const int m = group * kRowsPerGroup;
  for (int t = 0; t < kTokens; ++t) {
    if (!scales) totals[t] = mul(Lanes::load_floats(w.row_scales + m, n_rows), parts[t]);
    Lanes::store_floats(y + (n + t) * y_stride + m, totals[t], n_rows);
  }
}

// Compute the whole tiles of tokens [n, end); return the first token that remains.
template <typename Lanes, typename Format, int kParts, int kTokens>
[[gnu::noinline]] int group_scaled_tiles(const GroupScaledMatrix& w, const GroupedRows& x,
                                         int group, int n_rows, int n, int end, float* y,
                                         ptrdiff_t y_stride) {
  for (; n + kTokens <= end; n += kTokens) {
    group_scaled_tile<Lanes, Format, kParts, kTokens>(w, x, group, n_rows, n, y, y_stride);
  }
  return n;
}

// Bytes of activations that stay in L2 while all rows are computed.
constexpr int kInputBytes = 256 << 10;

template <typename Lanes, typename Format, int kParts>
void group_scaled_gemm(const GroupScaledMatrix& w, const GroupedRows& x, int group_begin,
                       int group_end, float* y, ptrdiff_t y_stride) {
  constexpr int kTokens = Lanes::kInputs / kParts, kRows = Lanes::kGroups * kRowsPerGroup;
  const int row_end = group_end * kRowsPerGroup < w.m ? group_end * kRowsPerGroup : w.m;
  const int n_tiles = kInputBytes / (kTokens * kParts * x.stride);
  const int n_together = n_tiles > 1 ? n_tiles * kTokens : kTokens;
  for (int begin = 0; begin < x.n; begin += n_together) {
    const int end = x.n - begin < n_together ? x.n : begin + n_together;
    for (int group = group_begin; group < group_end; group += Lanes::kGroups) {
      const int left = row_end - group * kRowsPerGroup, n_rows = left < kRows ? left : kRows;
      int n = begin;
      const auto add = [&]<int tokens>() {
        n = group_scaled_tiles<Lanes, Format, kParts, tokens>(w, x, group, n_rows, n, end, y,
                                                              y_stride);
      };
      add.template operator()<kTokens>();
      if constexpr (kTokens > 3) {
        if (end - n == 3) add.template operator()<3>();
      }
      if constexpr (kTokens > 2) {
        if (end - n == 2) add.template operator()<2>();
      }
      if constexpr (kTokens > 1) {
        if (end - n == 1) add.template operator()<1>();
      }
    }
  }
}

template <typename Lanes>
void group_scaled_gemm(const GroupScaledMatrix& w, const GroupedRows& x, int group_begin,
                       int group_end, float* y, ptrdiff_t y_stride) {
  with_format(w, [&]<typename Format>(Format) {
    const auto gemm =
        x.n_parts == 1 ? group_scaled_gemm<Lanes, Format, 1> : group_scaled_gemm<Lanes, Format, 2>;
    gemm(w, x, group_begin, group_end, y, y_stride);
  });
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
