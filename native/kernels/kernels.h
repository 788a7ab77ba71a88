// Arithmetic kernels of the engine: one contract each, one implementation per CPU family.
//
//   kernels_scalar.cpp   the reference: plain loops, no intrinsics, built and tested everywhere
//   kernels_avx2.cpp     x86 with AVX2, FMA and F16C
//   kernels_avx512.cpp   x86 with AVX-512 and VNNI
//   kernels_float.inc    floating-point kernels, written once over eight lanes, in all of them
//   kernels_mixers.inc   retention and attention, likewise
//
// Every implementation returns what the reference returns, bit for bit: integer sums are exact, and
// a floating-point sum is defined as eight lanes (element i goes to lane i % 8, fused multiply-add,
// in order of i) added as ((0+4)+(2+6)) + ((1+5)+(3+7)). Kernels do not allocate, throw, lock or
// start threads. Shapes and alignment are checked once, by the caller, when a model is loaded.
//
// Letters:  M output features   K input features   N tokens   D head size   S cached positions
#pragma once

#include <cstddef>
#include <cstdint>

namespace yocobit {

constexpr int kLanes = 8;
constexpr int kRowsPerGroup = 8;    // rows of a packed matrix that are interleaved
constexpr int kBlockBytes = 32;     // bytes of one block of one row
constexpr int kTernaryBlock = 128;  // columns of a block, 2 bits each
constexpr int kSignBlock = 256;     // columns of a block, 1 bit each
constexpr int kInt4Block = 64;      // columns of a block, 4 bits each
constexpr int kWideLevels = 16383;  // of an int16 code; 4096 pairs with int8 fit an int32
constexpr int kTokenBlock = 32;     // tokens that the products of a batch take together
constexpr int kAttentionTile = 32;  // positions per step of the online softmax
constexpr int kCacheLine = 64;
constexpr ptrdiff_t kPrefetchBytes = 4096;  // that weights are asked for ahead of their turn
constexpr int kPartialExtra = 8;            // floats after the [D] of a partial attention result
constexpr int kMaxHeadDim = 1024;

// Weights in {-1, 0, +1} or {-1, +1}, as docs/format.md lays them out: block b of row r starts at
// byte ((r / 8 * n_blocks + b) * 8 + r % 8) * 32. The same on disk, in memory and on every CPU.
struct BitMatrix {
  const uint8_t* codes;  // [ceil(M / 8)][n_blocks][8][32]
  int m;
  int n_blocks;  // of 128 (ternary) or 256 (sign) columns
  float scale;
};

// N activation rows rounded to int8 in [-127, 127], padded with zeros to whole weight blocks.
struct QuantizedRows {
  const int8_t* codes;  // [N][stride], 32-byte aligned
  const float* scales;  // [N]
  const int32_t* sums;  // [N], of the codes of a row
  int n;
  int stride;  // multiple of 256
};

// The same in int16, for products with int8 and int4 weights: codes in [-kWideLevels, kWideLevels].
struct WideRows {
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

// i4 is for caches only: 16 codes in [-7, 7] in 8 bytes, of which byte b holds codes b and b + 8
// in its low and high half; a row is padded to whole blocks with zeros.
enum class FloatType { f32, f16, i8, i4 };

// Weights kept in floating point, or in int8 with one scale per row (embedding and head).
struct DenseMatrix {
  const void* values;   // [M][K] of type
  const float* scales;  // [M] for i8, else nullptr
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

// One K/V head of a cache: position p is slot p % capacity; a tile of positions is contiguous.
// Tiles of i8 and i4 are in the order of code_tiles.h.
struct KeysValues {
  const void* keys;           // [capacity][D] of type, f32 and f16; else tiles
  const void* values;         // likewise
  const float* key_scales;    // [capacity] for i8 and i4
  const float* value_scales;  // [capacity]
  FloatType type;
  int64_t row_bytes;  // of the D values of a position
  int64_t capacity;   // multiple of kAttentionTile
  int head_dim;       // multiple of 8, at most kMaxHeadDim
  // Tiles of the cache, in the order of their positions, as if there were no others: position p of
  // what is attended to is position p % kAttentionTile of tile tiles[p / kAttentionTile]. nullptr:
  // all.
  const int32_t* tiles = nullptr;
};

struct Kernels {
  const char* name;  // "scalar", "avx2", "avx512"

  // y[n][m] = float(sum over k of w[m][k] * x[n][k]) * (x.scales[n] * w.scale), for the rows of
  // the groups [group_begin, group_end) that are below M. The sum is exact: |sum| <= 127 K.
  // Any content of codes is safe, but what code 3 counts as is not defined.
  //   y  [N][y_stride], must not overlap w or x
  void (*ternary_matmul)(const BitMatrix& w, const QuantizedRows& x, int group_begin, int group_end,
                         float* y, ptrdiff_t y_stride);
  void (*sign_matmul)(const BitMatrix& w, const QuantizedRows& x, int group_begin, int group_end,
                      float* y, ptrdiff_t y_stride);

  // y[n][m] = float(sum over k of w[m][k] * x[n][k]) * (x.scales[n] * w.scales[m]) for i8 weights;
  // rows [row_begin, row_end). The sum is exact in int64.
  //   y  [N][y_stride]
  void (*int8_matmul)(const DenseMatrix& w, const WideRows& x, int row_begin, int row_end, float* y,
                      ptrdiff_t y_stride);

  // y[n][m] = x.scales[n] * sum over blocks b, in order, of w.scales[m][b] * float(sum in the block
  // of w[m][k] * x[n][k]), by fused multiply-add; the sums in blocks are exact. Rows of the groups
  // [group_begin, group_end) that are below M.
  void (*int4_matmul)(const Int4Matrix& w, const WideRows& x, int group_begin, int group_end,
                      float* y, ptrdiff_t y_stride);

  // y[n][m] = sum over k of w[m][k] * x[n][k] for f32 and f16 weights; rows [row_begin, row_end).
  //   x  [N][K], y  [N][y_stride]
  void (*dense_matmul)(const DenseMatrix& w, const float* x, int n, int row_begin, int row_end,
                       float* y, ptrdiff_t y_stride);

  // codes[k] = round-half-even(x[k] * (127 / max|x|)), 0 for K <= k < padded; returns the scale
  // max|x| / 127 (max|x| is taken as at least 1e-12) and the sum of the codes.
  void (*quantize_row)(const float* x, int k, int padded, int8_t* codes, float* scale,
                       int32_t* sum);

  // The same with kWideLevels levels instead of 127, and a sum for every 64 codes.
  void (*quantize_wide_row)(const float* x, int k, int padded, int16_t* codes, float* scale,
                            int32_t* sums);

  // y = x / sqrt(mean(x^2) + eps) * weight; weight may be nullptr (ones). y may be x.
  void (*rms_norm)(const float* x, const float* weight, int size, float eps, float* y);

  // y = silu(gate) * up, relu(gate)^2 * up, and -1 or +1 by the sign of x (0 is -1). y may be
  // gate or up.
  void (*silu_multiply)(const float* gate, const float* up, int size, float* y);
  void (*relu2_multiply)(const float* gate, const float* up, int size, float* y);
  void (*sign)(const float* x, int size, float* y);

  // y[i] = e^((x[i] - largest) * rate) within 3 ulp; what is below e^-87 is about that, and so is
  // NaN. size is a multiple of 8; y may be x.
  void (*exponentials)(const float* x, int size, float largest, float rate, float* y);

  // Rotate one head x [D] in place; cosine, sine [D / 2]. Pairs (2i, 2i + 1) or (i, i + D/2).
  void (*rope_interleaved)(float* x, const float* cosine, const float* sine, int head_dim);
  void (*rope_half)(float* x, const float* cosine, const float* sine, int head_dim);

  // n positions of gated retention for one head, one after the other:
  // state = decay * state + k^T v; o = q state.
  //   state  [D][D] (key by value), updated; q, k (already scaled), v, o  [n][stride]
  void (*retain)(float* state, const float* q, const float* k, const float* v, ptrdiff_t stride,
                 const float* decays, int n, int head_dim, float* o);

  // One head x [D] as a row of type, and for i8 and i4 its scale (max|x| / 127 and / 7). A cache of
  // those keeps rows in the order of code_tiles.h, which is how attend reads them.
  void (*store)(const float* x, int head_dim, FloatType type, void* out, float* scale);
  // The inverse, to the values that attend counts with.
  void (*load)(const void* stored, float scale, int head_dim, FloatType type, float* x);

  // Attend with the n_queries heads that share a K/V head over positions [begin, end), walked in
  // tiles that start at multiples of kAttentionTile: the result depends on the positions only, not
  // on who asks. Leaves, per query, sum(e^(score - largest) V) [D], then largest, then
  // sum(e^(score - largest)).
  //   q  [n_queries][D]; partials  [n_queries][stride]; begin < end, end - begin <= capacity
  void (*attend)(const float* q, int n_queries, const KeysValues& cache, int64_t begin, int64_t end,
                 float scale, float* partials, ptrdiff_t stride);

  // Merge partial results [n][stride] over positions that follow each other, in order, into the
  // first: merged in pieces, the bits are the same. Then the output o [D] of the query.
  void (*merge)(float* partials, ptrdiff_t stride, int n, int head_dim);
  void (*finish)(const float* partial, int head_dim, float* o);

  // y += x.
  void (*add)(const float* x, int size, float* y);
};

// The implementations that this CPU can run, slowest first, then nullptr; [0] is the reference.
const Kernels* const* supported_kernels();

extern const Kernels kScalarKernels;
extern const Kernels kAvx2Kernels, kAvx512Kernels;  // defined in x86 builds only

}  // namespace yocobit
