// Training on tiles: the forward product by the GEMM of the engine, and the gradient of a weight by
// int16 gradients (A operand, in two parts of 8 bits) and int8 activations (B).
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/amx/base.h"
#include "kernels/amx/low_bit_gemm.h"
#include "kernels/amx/tiles.h"
#include "kernels/amx/vectors.h"
#include "kernels/generic/rounding-inl.h"
#include "kernels/training_kernels.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// For each weight the GEMM of the engine, which also needs the sums of the rows. Tokens that fill
// no tile are the base's.
void project(const MasterWeights& p, const uint8_t* codes, const Int8Rows& x, int begin, int end,
             float* const* ys) {
  constexpr int kTokens = 512;  // at a time
  for (int token = begin; token < end; token += kTokens) {
    const int n = end - token < kTokens ? end - token : kTokens;
    if (n < kTileTokens) return resolved_base.training.project(p, codes, x, token, end, ys);
    const int8_t* rows = x.codes + static_cast<size_t>(token) * x.stride;
    int32_t sums[kTokens];
    for (int t = 0; t < n; ++t) {
      sums[t] = 0;
      for (int k = 0; k < x.stride; ++k) sums[t] += rows[static_cast<size_t>(t) * x.stride + k];
    }
    const Int8Rows part = {
        .codes = rows, .scales = x.scales + token, .sums = sums, .n = n, .stride = x.stride};
    const uint8_t* packed = codes;
    for (int i = 0; i < p.n_weights; ++i) {
      const MasterWeight& weight = p.weights[i];
      const BitMatrix w = {
          .codes = packed, .m = weight.m, .n_blocks = n_blocks(p), .scale = weight.scale};
      (p.is_ternary ? ternary_gemm : sign_gemm)(
          w, part, 0, n_groups(weight), ys[i] + static_cast<size_t>(token) * weight.m, weight.m);
      packed += static_cast<size_t>(n_groups(weight)) * w.n_blocks * kRowsPerGroup * kBlockBytes;
    }
  }
}

constexpr int kGradientRows = kMaxTileRows;  // output features of a tile
constexpr int kTileGroups = kGradientRows / kRowsPerGroup;
constexpr int kPassTiles = 16;               // whose codes stay in the second-level cache
constexpr int kChunkTokens = kMaxTileBytes;  // of a row of A
constexpr int kQuad = 4;                     // tokens that a 32-bit lane sums up
constexpr int kChunkQuads = kChunkTokens / kQuad;
constexpr int kChunks = kGradientBlock / kChunkTokens;
constexpr int kGradientColumns = 32;  // input features, two B operands

typedef uint32_t Quads __attribute__((vector_size(kRowsPerGroup * 4)));

// Output gradients of a tile of rows in a block of tokens, rounded to int16: 256 * high + low.
struct alignas(64) GradientTile {
  uint8_t high[kChunks][kGradientRows][kChunkTokens];  // signed
  uint8_t low[kChunks][kGradientRows][kChunkTokens];
  float scales[kGradientRows];
};

// The rows [m, m + 8) of a weight of M rows; there are none without grads.
struct GradientGroup {
  const float* grads = nullptr;  // [N][M]
  float* out = nullptr;          // [M][K]
  int m = 0, M = 0;
};

// The parts of four tokens of eight rows, from pairs of tokens (lanes.h: int16_pairs).
inline void split_quads(const Quads& first, const Quads& second, Quads* high, Quads* low) {
  *low = (first & 0xff) | (first >> 8 & 0xff00) | (second & 0xff) << 16 | (second & 0xff0000) << 8;
  *high = (first >> 8 & 0xff) | (first >> 16 & 0xff00) | (second << 8 & 0xff0000) |
          (second & 0xff000000);
}

// Tokens [token, token + n) of a group, rounded: quads  [n_quads][kGradientRows] of each part.
inline void round_group(const GradientGroup& group, const float* x_scales, int token, int n,
                        int n_quads, int32_t* high, int32_t* low, float* scales) {
  const auto value = [&](int t) {
    const float* row = group.grads + static_cast<size_t>(token + t) * group.M;
    return mul(load_first(row + group.m, group.M - group.m), splat(x_scales[token + t]));
  };
  I32x8 largest_bits = splat_i32(0);
  for (int t = 0; t < n; ++t) largest_bits = max(largest_bits, magnitude_bits(value(t)));
  // 0, where a value is not finite: so are its codes.
  const F32x8 factor = round_rows(largest_bits, kSmallestGradient, kGradientLevels, scales);
  const auto scaled = [&](int t) { return t < n ? mul(value(t), factor) : zero(); };
  for (int quad = 0; quad < n_quads; ++quad) {
    const int t = quad * kQuad;
    int32_t pairs[2][kRowsPerGroup];
    store(pairs[0], int16_pairs(scaled(t), scaled(t + 1)));
    store(pairs[1], int16_pairs(scaled(t + 2), scaled(t + 3)));
    Quads parts[2];
    split_quads(load_vector<Quads>(pairs[0]), load_vector<Quads>(pairs[1]), &parts[0], &parts[1]);
    store_vector(high + quad * kGradientRows, parts[0]);
    store_vector(low + quad * kGradientRows, parts[1]);
  }
}

// The A operands of two groups.
inline void round_tile(const GradientGroup* groups, const float* x_scales, int token, int n,
                       GradientTile* tile) {
  const int n_chunks = (n + kChunkTokens - 1) / kChunkTokens;
  alignas(64) int32_t high[kGradientBlock / kQuad][kGradientRows];
  alignas(64) int32_t low[kGradientBlock / kQuad][kGradientRows];
  if (!groups[1].grads) {
    __builtin_memset(high, 0, sizeof high);
    __builtin_memset(low, 0, sizeof low);
  }
  for (int i = 0; i < kTileGroups && groups[i].grads; ++i) {
    const int row = i * kRowsPerGroup;
    round_group(groups[i], x_scales, token, n, n_chunks * kChunkQuads, high[0] + row, low[0] + row,
                tile->scales + row);
  }
  for (int chunk = 0; chunk < n_chunks; ++chunk) {
    const auto transpose = [&](const int32_t (*quads)[kGradientRows], uint8_t (*to)[kChunkTokens]) {
      Ints rows[kChunkQuads], columns[kGradientRows];
      for (int i = 0; i < kChunkQuads; ++i) {
        rows[i] = load_vector<Ints>(quads[chunk * kChunkQuads + i]);
      }
      transpose_square(rows, columns);
      for (int r = 0; r < kGradientRows; ++r) store_vector(to[r], columns[r]);
    };
    transpose(high, tile->high[chunk]);
    transpose(low, tile->low[chunk]);
  }
}

typedef uint8_t Bytes __attribute__((vector_size(kGradientColumns)));
typedef uint16_t BytePairs __attribute__((vector_size(kGradientColumns)));

// In each 128 bits, the low or the high halves of two vectors, interleaved.
YOCOBIT_INLINE Bytes interleave_low(const Bytes& a, const Bytes& b) {
  return __builtin_shufflevector(a, b, 0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 16,
                                 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55);
}
YOCOBIT_INLINE Bytes interleave_high(const Bytes& a, const Bytes& b) {
  return __builtin_shufflevector(a, b, 8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47,
                                 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63);
}
YOCOBIT_INLINE Bytes interleave_low_pairs(const Bytes& a, const Bytes& b) {
  return (Bytes)__builtin_shufflevector((BytePairs)a, (BytePairs)b, 0, 16, 1, 17, 2, 18, 3, 19, 8,
                                        24, 9, 25, 10, 26, 11, 27);
}
YOCOBIT_INLINE Bytes interleave_high_pairs(const Bytes& a, const Bytes& b) {
  return (Bytes)__builtin_shufflevector((BytePairs)a, (BytePairs)b, 4, 20, 5, 21, 6, 22, 7, 23, 12,
                                        28, 13, 29, 14, 30, 15, 31);
}

// Activations of a block of tokens as B operands: four tokens of a column are adjacent.
struct alignas(64) InputPanel {
  uint8_t quads[kGradientBlock / kQuad][2][kGradientColumns / 2][kQuad];  // signed
};

// n tokens of the columns from k on; zeros for tokens that do not exist.
inline void interleave_tokens(const Int8Rows& x, int token, int n, int k, InputPanel* panel) {
  const int n_quads = (n + kChunkTokens - 1) / kChunkTokens * kChunkQuads;
  for (int quad = 0; quad < n_quads; ++quad) {
    Bytes rows[kQuad] = {};
    for (int i = 0; i < kQuad && quad * kQuad + i < n; ++i) {
      rows[i] = load_vector<Bytes>(x.codes +
                                   static_cast<size_t>(token + quad * kQuad + i) * x.stride + k);
    }
    const Bytes low[] = {interleave_low(rows[0], rows[1]), interleave_low(rows[2], rows[3])};
    const Bytes high[] = {interleave_high(rows[0], rows[1]), interleave_high(rows[2], rows[3])};
    const Bytes fours[] = {
        interleave_low_pairs(low[0], low[1]), interleave_high_pairs(low[0], low[1]),
        interleave_low_pairs(high[0], high[1]), interleave_high_pairs(high[0], high[1])};
    // Columns 4i to 4i + 3, and those 16 on.
    for (int i = 0; i < 4; ++i) {
      for (int half = 0; half < 2; ++half) {
        __builtin_memcpy(panel->quads[quad][half][4 * i],
                         reinterpret_cast<const uint8_t*>(&fours[i]) + 16 * half, 16);
      }
    }
  }
}

// Sums of the parts of a tile of rows by a panel.
struct alignas(64) GradientSums {
  int32_t high[kGradientRows][kGradientColumns], low[kGradientRows][kGradientColumns];
};

// int32 budget: 256 products of at most 32767 * 127 stay below 2^31, and so do their parts.
inline void multiply_panel(const GradientTile& tile, const InputPanel& panel, int n,
                           GradientSums* sums) {
  constexpr ptrdiff_t kStride = sizeof panel.quads[0], kSumStride = sizeof sums->high[0];
  constexpr int kHalf = kGradientColumns / 2;
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  for (int chunk = 0; chunk * kChunkTokens < n; ++chunk) {
    const auto& columns = panel.quads[chunk * kChunkQuads];
    tile_load<4>(tile.high[chunk], kChunkTokens);
    tile_load<6>(columns[0], kStride);
    tile_dot_s8_s8<0, 4, 6>();
    tile_load<5>(tile.low[chunk], kChunkTokens);
    tile_dot_u8_s8<2, 5, 6>();
    tile_load<7>(columns[1], kStride);
    tile_dot_s8_s8<1, 4, 7>();
    tile_dot_u8_s8<3, 5, 7>();
  }
  tile_store<0>(sums->high[0], kSumStride);
  tile_store<1>(sums->high[0] + kHalf, kSumStride);
  tile_store<2>(sums->low[0], kSumStride);
  tile_store<3>(sums->low[0] + kHalf, kSumStride);
}

// The first n values, of which there may be more than a vector has; zeros for others.
inline Floats load_first_floats(const float* p, int n) {
  constexpr int kSize = sizeof(Floats) / sizeof(float);
  if (n >= kSize) return load_vector<Floats>(p);
  Floats x = {};
  for (int i = 0; i < n; ++i) x[i] = p[i];
  return x;
}

// out[k] = before + scale * sum of a row, for the first n_columns; before is 0 if is_first.
inline void add_gradient(const int32_t* high, const int32_t* low, float scale, int n_columns,
                         bool is_first, float* out) {
  constexpr int kSize = kMaxTileBytes / sizeof(float);
  for (int k = 0; k < n_columns; k += kSize) {
    const Ints sum = (load_vector<Ints>(high + k) << 8) + load_vector<Ints>(low + k);
    const Floats product = __builtin_convertvector(sum, Floats) * scale;
    Floats before = {};
    if (!is_first) before = load_first_floats(out + k, n_columns - k);
    store_first(out + k, before + product, n_columns - k);
  }
}

// Up to kPassTiles tiles of groups: the codes of a block of tokens are rounded once for all
// columns.
inline void gradient_pass(const GradientGroup* groups, int n_groups, const Int8Rows& x, int K) {
  alignas(64) GradientTile tiles[kPassTiles];
  InputPanel panel;
  GradientSums sums;
  const int n_tiles = (n_groups + kTileGroups - 1) / kTileGroups;
  for (int token = 0; token < x.n; token += kGradientBlock) {
    const int n = x.n - token < kGradientBlock ? x.n - token : kGradientBlock;
    for (int i = 0; i < n_tiles; ++i) {
      round_tile(groups + i * kTileGroups, x.scales, token, n, &tiles[i]);
    }
    for (int k = 0; k < K; k += kGradientColumns) {
      const int n_columns = K - k < kGradientColumns ? K - k : kGradientColumns;
      interleave_tokens(x, token, n, k, &panel);
      for (int i = 0; i < n_tiles; ++i) {
        multiply_panel(tiles[i], panel, n, &sums);
        for (int r = 0; r < kGradientRows; ++r) {
          const GradientGroup& group = groups[i * kTileGroups + r / kRowsPerGroup];
          const int m = group.m + r % kRowsPerGroup;
          if (m >= group.M) continue;
          add_gradient(sums.high[r], sums.low[r], tiles[i].scales[r], n_columns, token == 0,
                       group.out + static_cast<size_t>(m) * K + k);
        }
      }
    }
  }
}

void weight_gradient(const MasterWeights& p, const float* const* grads, const Int8Rows& x,
                     int begin, int end, float* const* grad_ws) {
  constexpr int kPassGroups = kPassTiles * kTileGroups;
  GradientGroup groups[kPassGroups];
  const TileScope scope(TileConfig{});
  int n = 0;
  for (int group = begin; group < end; ++group) {
    const auto [weight, m] = rows_of_group(p, group);
    groups[n++] = {
        .grads = grads[weight], .out = grad_ws[weight], .m = m, .M = p.weights[weight].m};
    if (n < kPassGroups && group + 1 < end) continue;
    if (n % kTileGroups != 0) groups[n] = {};
    gradient_pass(groups, n, x, p.k);
    n = 0;
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
