// The vector operations of a kernel family: the contract, and the header that implements it.
//
// A floating-point sum is defined over eight lanes, F32x8, whatever the CPU's vectors hold: element
// i goes to lane i % 8, in order of i, and lanes are added as ((0+4)+(2+6)) + ((1+5)+(3+7)). Where
// no lanes are added, kernels use the widest vectors, F32xN of kWideLanes, which may be F32x8.
// Every operation rounds once and alike on every CPU. simd/scalar.h is the definition in code.
//
//   kRegisters                     vectors that the CPU has registers for
//   load, store, splat, zero       eight floats; load_first, store_first: the first n of them, of
//                                  which there may be none or more than eight (loads give zeros)
//   load_f16, load_i8, load_i4     converted to float; load_i4: of 16 codes in 8 bytes the low (0)
//                                  or the high (1) halves
//   add, sub, mul, div, fma, abs   fma: a * b + c with one rounding
//   min, max                       the second operand where one is NaN
//   rounding_error                 x minus x rounded half to even, for |x| below 2^22 and NaN
//   power_of_two                   of integers in float
//   store_codes                    integers in float as int8 or int16; from_int32: to float
//   lane_sum, lane_max             of one vector; lane_sums<n, run>: of n vectors, `run` sums
//                                  contiguous, then `stride` on
//   in_register                    the value itself, which is not read from memory again
//   prefetch                       a cache line, into the second-level cache
//   half_from_float, square_root   of single values, correctly rounded
//   load_wide, wide_from_int32     F32xN; load_like, splat_like: as the type of another vector
//   transpose                      eight rows of eight floats
//   transpose_bytes                columns[i * column_stride + t] = x[t * stride + i] for i < 32
//                                  and t < n <= 16 tokens, 0 for t >= n; 16-byte aligned
//   I32x8                          splat_i32, add, sub, max, store; magnitude_bits (of a float),
//                                  greater (-1 where a > b, otherwise 0), int16_pairs (two vectors
//                                  rounded to int16 side by side; 0 for NaN and infinity)
//   U8x32                          splat_u8, add, bit_or, shift_left (no bit leaves a byte), store;
//                                  to_bytes (32 small I32x8 lanes), transpose_to (8 rows of 32
//                                  bytes, by columns)
//   I16Sums<kTokens>               int16 sums over 16 or 32 tokens: widened (from int8, aligned),
//                                  operators + and -, add_to (int32 totals, 64-byte aligned)
//   F32x16                         float sums over 16 tokens: add, sub, splat_like
//   Int16Pairs                     a Vector of kLanes pairs of int16, or of int32 sums of their
//                                  products: zero, splat, widened (two rows of int8 as pairs; the
//                                  second may be null), multiply_add, store_floats
#pragma once

#include "kernels/formats.h"
#include "simd/target.h"

// clang-format off
#include YOCOBIT_QUOTE(simd/YOCOBIT_LANES.h)
// clang-format on

#ifndef YOCOBIT_HAS_WIDE_LANES
namespace yocobit::YOCOBIT_TARGET {
namespace {

using F32xN = F32x8;
constexpr int kWideLanes = kLanes;

inline F32xN load_wide(const float* p) { return load(p); }
inline F32x8 load_like(const F32x8&, const float* p) { return load(p); }
inline F32xN wide_from_int32(const int32_t* p) { return from_int32(p); }

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
#endif
