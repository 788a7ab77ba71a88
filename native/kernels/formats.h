// Layouts of what the kernels read and write: packed weights, quantised activations, KV caches.
//
// Letters:  M output features   K input features   N tokens   D head size   S cached positions
#pragma once

#include <cstddef>
#include <cstdint>

namespace yocobit {

constexpr int kLanes = 8;             // of a floating-point sum: simd/lanes.h
constexpr int kRowsPerGroup = 8;      // rows of a packed matrix that are interleaved
constexpr int kBlockBytes = 32;       // bytes of one block of one row
constexpr int kTernaryBlock = 128;    // columns of a block, 2 bits each
constexpr int kSignBlock = 256;       // columns of a block, 1 bit each
constexpr int kInt4Block = 64;        // columns of a block, 4 bits each
constexpr int kInt16Max = 16383;      // of an int16 activation; 4096 pairs with int8 fit an int32
constexpr int kActivationGroup = 32;  // columns of grouped activations that share a scale
constexpr int kPartWeight = 128;      // of the first of two int8 parts of an int16 activation
constexpr int kTokenBlock = 32;       // tokens of a tile of a GEMM
constexpr int kAttentionTile = 32;    // positions of a step of the online softmax
constexpr double kSmallestAbsmax = 1e-12;  // of a row of activations: zeros are not divided by zero
constexpr int kCacheLine = 64;
constexpr ptrdiff_t kPrefetchBytes = 4096;  // distance at which weights are prefetched
constexpr int kPartialExtra = 8;            // floats after the [D] of a partial attention result
constexpr int kMaxHeadDim = 1024;

// Weights in {-1, 0, +1} or {-1, +1}, as docs/reference/packed-format.md lays them out: block b of
// row r starts at byte ((r / 8 * n_blocks + b) * 8 + r % 8) * 32. The same on disk, in memory and
// on every CPU.
struct BitMatrix {
  const uint8_t* codes;  // [ceil(M / 8)][n_blocks][8][32]
  int m;
  int n_blocks;                       // of 128 (ternary) or 256 (sign) columns
  float scale;                        // of all rows, unless there are row_scales
  const float* row_scales = nullptr;  // [M], one for each output row
};

// Static: the linker must not choose a copy that was compiled for one instruction set.
static inline float scale_of(const BitMatrix& w, int row) {
  return w.row_scales ? w.row_scales[row] : w.scale;
}

// N activation rows rounded to int8 in [-127, 127], padded with zeros to whole weight blocks.
struct Int8Rows {
  const int8_t* codes;  // [N][stride], 32-byte aligned
  const float* scales;  // [N]
  const int32_t* sums;  // [N], of the codes of a row: the zero-point correction
  int n;
  int stride;  // multiple of 256
};

// The same in int16, for int8 and int4 weights: codes in [-kInt16Max, kInt16Max].
struct Int16Rows {
  const int16_t* codes;  // [N][stride], 32-byte aligned
  const int32_t* sums;   // [N][stride / 64], of the codes of each block
  const float* scales;   // [N]
  int n;
  int stride;  // multiple of 64
};

// Weights in [-8, 7] as 4-bit codes weight + 8, laid out as BitMatrix is, with a float16 scale for
// every 64 columns of a row.
struct Int4Matrix {
  const uint8_t* codes;    // [ceil(M / 8)][n_blocks][8][32]
  const uint16_t* scales;  // [ceil(M / 8)][n_blocks][8]
  int m;
  int n_blocks;  // of 64 columns
};

// N activation rows rounded to integers with a scale for every kActivationGroup columns, padded
// with zeros. One part: int8 in [-127, 127]; Kernels::quantize_grouped_row selects the largest code
// of each group. Two parts: int16 in [-kInt16Max, kInt16Max] as kPartWeight * part 0 + part 1, part
// 1 in [0, 127].
struct GroupedRows {
  const int8_t* codes;  // [N][n_parts][stride], 32-byte aligned
  const float* scales;  // [N][stride / 32]
  const int32_t* sums;  // [N][stride / 32], minus the sum of the integers of each group
  int n;
  int stride;   // multiple of 256
  int n_parts;  // 1 or 2
};

// Weights (first + step * code) * scale, where scales are of groups of columns of a row, or of
// rows. Blocks have the columns of BitMatrix, byte b of a row's block holds columns b + 32 f in bit
// field f, but the rows are interleaved by four bytes, so that the lanes of a vector are rows.
struct GroupScaledMatrix {
  const uint8_t* codes;  // [ceil(M / 8)][n_blocks][8 units][8 rows][4]: byte 4 * unit + i of a row
  const uint16_t* scales;   // [ceil(M / 8)][padded K / group_columns][8] float16, or nullptr
  const float* row_scales;  // [M] where scales is nullptr
  int m;
  int n_blocks;       // of 128 (2 bits) or 256 (1 bit) columns
  int bits;           // 1 or 2
  int group_columns;  // 64 or 128, 0 for row scales
  int first;          // bits, first and step are 2, -1, 1; 1, -1, 2; or 2, -3, 2
  int step;
};

// i4 is for caches only: 16 codes in [-7, 7] in 8 bytes, of which byte b holds codes b and b + 8
// in its low and high half; a row is padded to whole blocks with zeros.
enum class FloatType { f32, f16, i8, i4 };

// Weights kept in floating point, or in int8 with one scale per row (embedding and head).
struct DenseMatrix {
  const void* values;   // [M][K] of type
  const float* scales;  // [M] for i8, otherwise nullptr
  FloatType type;
  int m;
  int k;  // multiple of 8

  // One row of an f32 matrix as a matrix.
  DenseMatrix row(int index) const {
    return {.values = static_cast<const float*>(values) + static_cast<ptrdiff_t>(index) * k,
            .scales = nullptr,
            .type = FloatType::f32,
            .m = 1,
            .k = k};
  }
};

// One head of a KV cache: position p is slot p % capacity; a tile of positions is contiguous.
// Tiles of i8 and i4 are in the order of kv_tiles.h.
struct KeysValues {
  const void* keys;           // f32 and f16: [capacity][D]; i8 and i4: tiles
  const void* values;         // likewise
  const float* key_scales;    // [capacity] for i8 and i4
  const float* value_scales;  // [capacity]
  FloatType type;
  int64_t row_bytes;  // of the D values of a position
  int64_t capacity;   // multiple of kAttentionTile
  int head_dim;       // multiple of 8, at most kMaxHeadDim
  // Sparse attention: the selected tiles of the cache in the order of their positions, as if there
  // were no others. Position p is position p % kAttentionTile of tile tiles[p / kAttentionTile].
  // nullptr: all tiles.
  const int32_t* tiles = nullptr;
};

// A query of a K/V head, the positions [begin, end) that it attends to, and its partial result:
// sum(e^(score - largest) V) [D], then largest, then sum(e^(score - largest)).
struct AttentionQuery {
  const float* q;  // [D]
  int64_t begin, end;
  float* partial;  // [D + kPartialExtra]
};

}  // namespace yocobit
