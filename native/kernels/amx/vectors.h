// 512-bit vectors of GCC and Clang, and shuffles to pack tiles. They compile to AVX-512 in the
// family itself, and to the baseline of the CPU in its emulation.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#ifndef YOCOBIT_EMULATED
#include <immintrin.h>
#endif

#include "simd/target.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

typedef int32_t Ints __attribute__((vector_size(64)));
typedef int64_t Longs __attribute__((vector_size(64)));
typedef float Floats __attribute__((vector_size(64)));

template <typename Vector>
YOCOBIT_INLINE Vector load_vector(const void* p) {
  Vector x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
template <typename Vector>
YOCOBIT_INLINE void store_vector(void* p, const Vector& x) {
  __builtin_memcpy(p, &x, sizeof x);
}

// The first n values, of which there may be none or more than the vector has.
template <typename Vector>
YOCOBIT_INLINE void store_first(float* p, const Vector& x, int n) {
  constexpr int kSize = sizeof x / sizeof(float);
  if (n >= kSize) return store_vector(p, x);
  for (int i = 0; i < n; ++i) p[i] = x[i];
}

YOCOBIT_INLINE Floats splat_floats(float x) { return x - Floats{}; }

// a * b + c with one rounding.
YOCOBIT_INLINE Floats fused(const Floats& a, const Floats& b, const Floats& c) {
#ifndef YOCOBIT_EMULATED
  return _mm512_fmadd_ps(a, b, c);
#else
  Floats x;
  for (int i = 0; i < 16; ++i) x[i] = std::fma(a[i], b[i], c[i]);
  return x;
#endif
}

// 32 bytes, and 32 more.
YOCOBIT_INLINE Ints load_halves(const void* low, const void* high) {
  typedef int64_t Half __attribute__((vector_size(32)));
  const Half first = load_vector<Half>(low), second = load_vector<Half>(high);
  return (Ints)__builtin_shufflevector(first, second, 0, 1, 2, 3, 4, 5, 6, 7);
}

// In each 128 bits of two vectors, the first or the last two values, interleaved.
YOCOBIT_INLINE Ints unpack_low(const Ints& a, const Ints& b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
}
YOCOBIT_INLINE Ints unpack_high(const Ints& a, const Ints& b) {
  return __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
}
YOCOBIT_INLINE Ints unpack_low_pairs(const Ints& a, const Ints& b) {
  return (Ints)__builtin_shufflevector((Longs)a, (Longs)b, 0, 8, 2, 10, 4, 12, 6, 14);
}
YOCOBIT_INLINE Ints unpack_high_pairs(const Ints& a, const Ints& b) {
  return (Ints)__builtin_shufflevector((Longs)a, (Longs)b, 1, 9, 3, 11, 5, 13, 7, 15);
}

// Transpose the 4 x 4 values in each 128 bits of four vectors.
YOCOBIT_INLINE void transpose_quarters(const Ints* rows, Ints* columns) {
  const Ints low[2] = {unpack_low(rows[0], rows[1]), unpack_low(rows[2], rows[3])};
  const Ints high[2] = {unpack_high(rows[0], rows[1]), unpack_high(rows[2], rows[3])};
  columns[0] = unpack_low_pairs(low[0], low[1]);
  columns[1] = unpack_high_pairs(low[0], low[1]);
  columns[2] = unpack_low_pairs(high[0], high[1]);
  columns[3] = unpack_high_pairs(high[0], high[1]);
}

// Two groups of eight rows of 32 bytes, transposed: vector c holds the bytes 4c to 4c + 3 of each
// of the 16 rows.
YOCOBIT_INLINE void transpose_groups(const uint8_t* first, const uint8_t* second, Ints* columns) {
  Ints halves[2][4];  // rows 0-3 and 4-7: in 128 bits column c or 4 + c of a group
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    Ints rows[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const ptrdiff_t byte = (4 * half + r) * 32;
      rows[r] = load_halves(first + byte, second + byte);
    }
    transpose_quarters(rows, halves[half]);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const Longs low = (Longs)halves[0][c], high = (Longs)halves[1][c];
    columns[c] = (Ints)__builtin_shufflevector(low, high, 0, 1, 8, 9, 4, 5, 12, 13);
    columns[4 + c] = (Ints)__builtin_shufflevector(low, high, 2, 3, 10, 11, 6, 7, 14, 15);
  }
}

// 16 x 16 values.
YOCOBIT_INLINE void transpose_square(const Ints* rows, Ints* columns) {
  Ints quarters[16];  // [rows 4i to 4i + 3][c]: in 128 bits column 4j + c
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) transpose_quarters(rows + 4 * i, quarters + 4 * i);
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    Longs halves[2][2];  // [rows 8i to 8i + 7][quarters 0 and 2, quarters 1 and 3]
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const Longs low = (Longs)quarters[8 * i + c], high = (Longs)quarters[8 * i + 4 + c];
      halves[i][0] = __builtin_shufflevector(low, high, 0, 1, 4, 5, 8, 9, 12, 13);
      halves[i][1] = __builtin_shufflevector(low, high, 2, 3, 6, 7, 10, 11, 14, 15);
    }
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const Longs low = halves[0][j], high = halves[1][j];
      columns[4 * j + c] = (Ints)__builtin_shufflevector(low, high, 0, 1, 4, 5, 8, 9, 12, 13);
      columns[8 + 4 * j + c] = (Ints)__builtin_shufflevector(low, high, 2, 3, 6, 7, 10, 11, 14, 15);
    }
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
