// Shared by the GEMM kernels on tiles: unpack weights to tiles, and multiply rows of activations by
// them.
//
// Activations are the A operand, as they are stored: a tile is 16 tokens by 64 columns, or by 32.
// Weights are the B operand, VNNI-interleaved: [columns / 4][16 output rows][4]. So the C operand
// is [16 tokens][16 output rows], which is the order of the outputs.
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/amx/tiles.h"
#include "kernels/amx/vectors.h"
#include "kernels/formats.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

constexpr int kTileTokens = 16;  // of an A operand; fewer are left to the base of the family
constexpr int kTileRows = 16;    // output rows of a B operand
constexpr int kTileSums = kTileTokens * kTileRows;  // of a C operand
constexpr int kStripRows = 2 * kTileRows;           // output rows that are computed together
constexpr int kStripGroups = kStripRows / kRowsPerGroup;
constexpr int kPassColumns = 1024;  // whose weights, unpacked, stay in L1
constexpr int kPassBytes = kStripRows * kPassColumns;
constexpr int kMaxTokens = 128;  // whose sums stay in L2
constexpr int kMaxTiles = kMaxTokens / kTileTokens;

template <int kColumns>
constexpr int kTileBytes = kColumns * kTileRows;  // of a B operand

inline int at_most(int value, int most) { return value < most ? value : most; }

// The first token of a tile of tokens [begin, end), of which there are at least kTileTokens: the
// last tile overlaps with the one before it, so that all are whole.
inline int first_token(int tile, int begin, int end) {
  return at_most(begin + tile * kTileTokens, end - kTileTokens);
}
inline int tiles_of(int begin, int end) { return (end - begin + kTileTokens - 1) / kTileTokens; }

// Call compute(begin, end) for all tokens, at most n_together at a time but at least kTileTokens.
template <typename Compute>
void for_tokens(int n, int n_together, Compute compute) {
  for (int begin = 0; begin < n; begin += n_together) {
    const int end = at_most(n, begin + n_together);
    compute(at_most(begin, end - kTileTokens), end);
  }
}

// Two operands of activations (of different tokens, or parts of the same), by two of weights.
struct alignas(64) TileSums {
  int32_t values[2][2][kTileSums];
};

// Codes of the next pass, prefetched in the steps of this one.
template <int kStepBytes>
struct NextCodes {
  const uint8_t* codes;
  ptrdiff_t stride;  // from a stream to the next one
  int n_streams;

  YOCOBIT_INLINE void prefetch() {
    for (int stream = 0; stream < n_streams; ++stream) {
      for (int byte = 0; byte < kStepBytes; byte += kCacheLine) {
        __builtin_prefetch(codes + stream * stride + byte);
      }
    }
    codes += kStepBytes;
  }
};

template <bool kIsSigned, int c, int a, int b>
YOCOBIT_INLINE void dot_weights() {
  if constexpr (kIsSigned) {
    tile_dot_s8_s8<c, a, b>();
  } else {
    tile_dot_s8_u8<c, a, b>();
  }
}

// Add to the sums, or set them if is_first, the products of n_steps of kColumns columns. If
// kIsSplit, both operands of activations are the same tokens: the second one takes every other
// step, so that four sums are in flight; n_steps is even.
//   first, second  rows `stride` bytes apart
//   weights        [n_steps][2][kColumns / 4][16][4]
template <int kColumns, bool kIsSigned, bool kIsSplit, typename Next>
YOCOBIT_INLINE void multiply_tiles(const int8_t* first, const int8_t* second, ptrdiff_t stride,
                                   const uint8_t* weights, int n_steps, bool is_first, Next& next,
                                   TileSums& sums) {
  constexpr int kBytes = kTileBytes<kColumns>, kSteps = kIsSplit ? 2 : 1;
  if (is_first) {
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    tile_zero<3>();
  } else {
    tile_load<0>(sums.values[0][0], 64);
    tile_load<1>(sums.values[0][1], 64);
    tile_load<2>(sums.values[1][0], 64);
    tile_load<3>(sums.values[1][1], 64);
  }
  for (int step = 0; step < n_steps; step += kSteps) {
    tile_load<4>(first, stride);
    tile_load<6>(weights, 64);
    dot_weights<kIsSigned, 0, 4, 6>();
    tile_load<7>(weights + kBytes, 64);
    dot_weights<kIsSigned, 1, 4, 7>();
    tile_load<5>(second, stride);
    if constexpr (kIsSplit) {
      tile_load<6>(weights + 2 * kBytes, 64);
      tile_load<7>(weights + 3 * kBytes, 64);
    }
    dot_weights<kIsSigned, 2, 5, 6>();
    dot_weights<kIsSigned, 3, 5, 7>();
    first += kSteps * kColumns;
    second += kSteps * kColumns;
    weights += kSteps * 2 * kBytes;
    for (int i = 0; i < kSteps; ++i) next.prefetch();
  }
  tile_store<0>(sums.values[0][0], 64);
  tile_store<1>(sums.values[0][1], 64);
  tile_store<2>(sums.values[1][0], 64);
  tile_store<3>(sums.values[1][1], 64);
}

// Unpack n_blocks blocks of the groups of a strip to tiles of kColumns columns, a byte for each
// code: [steps][2][kColumns / 4][16][4]. Groups that do not exist are as the last one.
//   kIsInterleaved  codes are in the order of GroupScaledMatrix, not of BitMatrix
template <int kBits, int kColumns, bool kIsInterleaved>
void unpack_strip(const uint8_t* codes, ptrdiff_t group_bytes, int n_groups, int n_blocks,
                  uint8_t* weights) {
  constexpr int kFieldColumns = kBlockBytes, kFields = kColumns / kFieldColumns;  // of a tile
  constexpr int32_t kMask = 0x01010101 * ((1 << kBits) - 1);
  for (int tile = 0; tile < 2; ++tile, weights += kTileBytes<kColumns>) {
    const uint8_t* first = codes + at_most(2 * tile, n_groups - 1) * group_bytes;
    const uint8_t* second = codes + at_most(2 * tile + 1, n_groups - 1) * group_bytes;
    uint8_t* to = weights;
    for (int block = 0; block < n_blocks; ++block) {
      Ints columns[8];  // bytes 4c to 4c + 3 of each row
      if constexpr (kIsInterleaved) {
#pragma GCC unroll 8
        for (int c = 0; c < 8; ++c) columns[c] = load_halves(first + 32 * c, second + 32 * c);
      } else {
        transpose_groups(first, second, columns);
      }
#pragma GCC unroll 8
      for (int field = 0; field < 8 / kBits; ++field) {
        uint8_t* from = to + field / kFields * 2 * kTileBytes<kColumns> +
                        field % kFields * kTileBytes<kFieldColumns>;
#pragma GCC unroll 8
        for (int c = 0; c < 8; ++c) {
          store_vector(from + 64 * c, columns[c] & kMask);
          columns[c] >>= kBits;
        }
      }
      first += kRowsPerGroup * kBlockBytes;
      second += kRowsPerGroup * kBlockBytes;
      to += 8 / kBits / kFields * 2 * kTileBytes<kColumns>;
    }
  }
}

// float16 scales of the groups of a strip as floats [kStripRows]. Groups that do not exist are as
// the last one.
inline void load_scales(const uint16_t* halves, ptrdiff_t group_stride, int n_groups,
                        float* scales) {
  for (int i = 0; i < kStripGroups; ++i) {
    store(scales + i * kRowsPerGroup, load_f16(halves + at_most(i, n_groups - 1) * group_stride));
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
