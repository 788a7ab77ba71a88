// Lookup-table (LUT) GEMM for batches of tokens, exact and above the rate of multiply-add: for a
// tile of tokens the sums that the codes of one byte can select are built once, as vectors over the
// tokens; then a byte of weights costs one vector addition for 4 (ternary) or 8 (sign) columns.
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/generic/low_bit-inl.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

constexpr int kTableColumns = 8;  // byte columns of a block whose tables exist at a time
constexpr int kTableRows = 2560;  // rows of a tile, whose sums stay in the second-level cache
constexpr int kPassesPerBlock = kBlockBytes / kTableColumns;

// The sums that a byte of codes selects, for the inputs x of its columns.
template <typename Format>
struct ByteTable;

// 81 of the first 171 bytes have no code 3; those that have one select an older sum.
template <>
struct ByteTable<Ternary> {
  static constexpr int kEntries = 171;     // stride; the last table has all 256
  static constexpr int kBlocksPerSum = 2;  // 64 bytes of at most 4 * 127 each: 32512 fits int16

  template <typename Sums>
  static void build(const Sums* x, Sums* table) {
    const Sums zero = {};
    Sums* entry = table;
    for (int c3 = 0; c3 < 3; ++c3, entry += 64 - 3 * 16) {
      const Sums s3 = c3 == 0 ? zero - x[3] : c3 == 1 ? zero : x[3];
      for (int c2 = 0; c2 < 3; ++c2, entry += 16 - 3 * 4) {
        const Sums s2 = c2 == 0 ? s3 - x[2] : c2 == 1 ? s3 : s3 + x[2];
        for (int c1 = 0; c1 < 3; ++c1, entry += 4) {
          const Sums s1 = c1 == 0 ? s2 - x[1] : c1 == 1 ? s2 : s2 + x[1];
          entry[0] = s1 - x[0];
          entry[1] = s1;
          entry[2] = s1 + x[0];
        }
      }
    }
  }
};

template <>
struct ByteTable<Sign> {
  static constexpr int kEntries = 256;
  static constexpr int kBlocksPerSum = 1;  // 32 bytes of at most 8 * 127 each: 32512 fits int16

  template <typename Sums>
  static void build(const Sums* x, Sums* table) {
    table[0] = Sums{};
    for (int c = 0; c < 8; ++c) table[0] = table[0] - x[c];
    for (int c = 0; c < 8; ++c) {
      const Sums twice = x[c] + x[c];
      for (int i = 0; i < 1 << c; ++i) table[(1 << c) + i] = table[i] + twice;
    }
  }
};

// Add to the sums of every row what 8 of its bytes select. Sums start with the first pass of
// kBlocksPerSum blocks and go to the int32 totals with the last.
template <typename Format, typename Sums, bool is_first, bool is_last>
void lut_pass(const BitMatrix& w, int group_begin, int group_end, int block, int column,
              const Sums* tables, Sums* sums, int32_t (*totals)[Sums::kTokens]) {
  constexpr int kShift = Sums::kTokens == 32 ? 6 : 5;  // log2 of the bytes of an entry
  static_assert(sizeof(Sums) == 1 << kShift);
  for (int group = group_begin; group < group_end; ++group) {
    const uint8_t* codes =
        w.codes + (static_cast<size_t>(group) * w.n_blocks + block) * kRowsPerGroup * kBlockBytes +
        column;
    for (int r = 0; r < kRowsPerGroup; ++r, ++sums, ++totals) {
      uint64_t bytes = 0;
      __builtin_memcpy(&bytes, codes + r * kBlockBytes, kTableColumns);
      Sums sum = is_first ? Sums{} : *sums;
#pragma GCC unroll 8
      for (int i = 0; i < kTableColumns; ++i) {
        // Shifted so that the byte is an offset of whole entries already.
        const uint64_t offset =
            (i == 0 ? bytes << kShift : bytes >> (8 * i - kShift)) & 255 << kShift;
        const char* table = reinterpret_cast<const char*>(tables + i * ByteTable<Format>::kEntries);
        sum = sum + *reinterpret_cast<const Sums*>(table + offset);
      }
      if constexpr (is_last) {
        sum.add_to(*totals);
      } else {
        *sums = sum;
      }
    }
    // The next block of these rows, a line of it in each pass.
    const char* next = reinterpret_cast<const char*>(codes - column) + kRowsPerGroup * kBlockBytes;
    __builtin_prefetch(next + column * kRowsPerGroup);
  }
}

// y[t][r] = totals[r][t] * (scales[t] * row_scales[r]) for n tokens and the first n_rows <= 8 rows.
template <int kTokens>
void write_group(const int32_t (*totals)[kTokens], int n_rows, const float* scales,
                 const F32x8& row_scales, int n, float* y, ptrdiff_t y_stride) {
  static_assert(kTokens % kLanes == 0);
  for (int first = 0; first < n; first += kLanes) {
    F32x8 columns[kLanes];
    for (int r = 0; r < kLanes; ++r) columns[r] = from_int32(totals[r] + first);
    transpose(columns);
    for (int t = first; t < first + kLanes && t < n; ++t) {
      const F32x8 out = mul(columns[t - first], mul(splat(scales[t]), row_scales));
      store_first(y + t * y_stride, out, n_rows);
    }
  }
}

// n <= Sums::kTokens tokens by the rows of the groups [group_begin, group_end), at most kTableRows.
// Calls write(group, totals [8][Sums::kTokens]) for each.
template <typename Format, typename Sums, typename Write>
void lut_tile(const BitMatrix& w, const Int8Rows& x, int first_token, int n, int group_begin,
              int group_end, const Write& write) {
  using Table = ByteTable<Format>;
  constexpr int kColumns = Format::kColumns, kTokens = Sums::kTokens;
  alignas(64) Sums tables[(kTableColumns - 1) * Table::kEntries + 256];
  alignas(64) Sums sums[kTableRows];
  alignas(64) int32_t totals[kTableRows][kTokens];
  const int n_rows = (group_end - group_begin) * kRowsPerGroup;
  __builtin_memset(totals, 0, sizeof totals[0] * n_rows);
  for (int block = 0; block < w.n_blocks; ++block) {
    alignas(32) int8_t columns[kColumns][kBlockBytes][kTokens];
    for (int c = 0; c < kColumns; ++c) {
      for (int part = 0; part < kTokens; part += 16) {
        const int8_t* codes = x.codes + static_cast<size_t>(first_token + part) * x.stride +
                              (block * kColumns + c) * kBlockBytes;
        transpose_bytes(codes, x.stride, n - part, &columns[c][0][part], kTokens);
      }
    }
    for (int pass = 0; pass < kPassesPerBlock; ++pass) {
      for (int i = 0; i < kTableColumns; ++i) {
        Sums inputs[kColumns];
        for (int c = 0; c < kColumns; ++c) {
          inputs[c] = Sums::widened(columns[c][pass * kTableColumns + i]);
        }
        Table::build(inputs, tables + i * Table::kEntries);
      }
      const bool is_first = pass == 0 && block % Table::kBlocksPerSum == 0;
      const bool is_last =
          pass == kPassesPerBlock - 1 &&
          (block % Table::kBlocksPerSum == Table::kBlocksPerSum - 1 || block == w.n_blocks - 1);
      const auto run_pass = is_first  ? lut_pass<Format, Sums, true, false>
                            : is_last ? lut_pass<Format, Sums, false, true>
                                      : lut_pass<Format, Sums, false, false>;
      run_pass(w, group_begin, group_end, block, pass * kTableColumns, tables, sums, totals);
    }
  }
  for (int row = 0; row < n_rows; row += kRowsPerGroup) {
    write(group_begin + row / kRowsPerGroup, totals + row);
  }
}

// The same with any number of groups.
template <typename Format, typename Sums, typename Write>
void lut_tiles(const BitMatrix& w, const Int8Rows& x, int first_token, int n, int group_begin,
               int group_end, const Write& write) {
  constexpr int kMostGroups = kTableRows / kRowsPerGroup;
  const int n_tiles = (group_end - group_begin + kMostGroups - 1) / kMostGroups;
  for (int tile = 0, begin = group_begin; tile < n_tiles; ++tile) {
    const int end = group_begin + (group_end - group_begin) * (tile + 1) / n_tiles;
    lut_tile<Format, Sums>(w, x, first_token, n, begin, end, write);
    begin = end;
  }
}

// n <= Sums::kTokens tokens by all rows of the groups.
template <typename Format, typename Sums>
void lut_gemm(const BitMatrix& w, const Int8Rows& x, int first_token, int n, int group_begin,
              int group_end, float* y, ptrdiff_t y_stride) {
  const auto write = [&](int group, const int32_t (*totals)[Sums::kTokens]) {
    const int m = group * kRowsPerGroup;
    const int n_rows = w.m - m < kRowsPerGroup ? w.m - m : kRowsPerGroup;
    write_group<Sums::kTokens>(totals, n_rows, x.scales + first_token, scales_of(w, m), n,
                               y + first_token * y_stride + m, y_stride);
  };
  lut_tiles<Format, Sums>(w, x, first_token, n, group_begin, group_end, write);
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
