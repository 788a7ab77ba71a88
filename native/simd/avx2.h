// The operations of simd/lanes.h in 256-bit registers: x86 with AVX2, FMA and F16C.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/formats.h"
#include "simd/target.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

struct F32x8 {
  __m256 v;
};

#ifndef YOCOBIT_HAS_VNNI
// Each lane: sum + a[0] b[0] + a[1] b[1], of int16.
YOCOBIT_INLINE __m256i dot_pairs(__m256i sum, __m256i a, __m256i b) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}
#endif

#ifndef YOCOBIT_HAS_WIDE_LANES
constexpr int kRegisters = 16;

inline F32x8 rounding_error(const F32x8& x) {
  const __m256 rounded = _mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return {_mm256_sub_ps(x.v, rounded)};
}
#endif

// The first n of eight lanes, of which there may be more or none.
inline __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline __m256i load_bytes(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

inline F32x8 load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline F32x8 load_first(const float* p, int n) {
  return {n >= 8 ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, first_lanes(n))};
}
inline F32x8 load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline F32x8 load_i8(const int8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))};
}
inline F32x8 load_i4(const uint8_t* p, int half) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  const __m256i pairs = _mm256_cvtepi8_epi32(bytes);
  const __m256i codes =
      half ? _mm256_srai_epi32(pairs, 4) : _mm256_srai_epi32(_mm256_slli_epi32(pairs, 28), 28);
  return {_mm256_cvtepi32_ps(codes)};
}
inline void store(float* p, const F32x8& x) { _mm256_storeu_ps(p, x.v); }
inline void store_first(float* p, const F32x8& x, int n) {
  if (n >= 8) {
    _mm256_storeu_ps(p, x.v);
  } else {
    _mm256_maskstore_ps(p, first_lanes(n), x.v);
  }
}
inline F32x8 splat(float x) { return {_mm256_set1_ps(x)}; }
inline F32x8 splat_like(const F32x8&, float x) { return splat(x); }
inline F32x8 zero() { return {_mm256_setzero_ps()}; }
inline F32x8 fma(const F32x8& a, const F32x8& b, const F32x8& c) {
  return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
inline F32x8 mul(const F32x8& a, const F32x8& b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline F32x8 add(const F32x8& a, const F32x8& b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F32x8 sub(const F32x8& a, const F32x8& b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F32x8 div(const F32x8& a, const F32x8& b) { return {_mm256_div_ps(a.v, b.v)}; }
inline F32x8 min(const F32x8& a, const F32x8& b) { return {_mm256_min_ps(a.v, b.v)}; }
inline F32x8 max(const F32x8& a, const F32x8& b) { return {_mm256_max_ps(a.v, b.v)}; }
inline F32x8 abs(const F32x8& x) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), x.v)}; }
inline F32x8 power_of_two(const F32x8& n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23))};
}
inline __m128i to_int16(const F32x8& x) {
  const __m256i wide = _mm256_cvtps_epi32(x.v);
  return _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
}
inline void store_codes(int16_t* p, const F32x8& x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_int16(x));
}
inline void store_codes(int8_t* p, const F32x8& x) {
  const __m128i narrow = to_int16(x);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(narrow, narrow));
}
inline F32x8 from_int32(const int32_t* p) { return {_mm256_cvtepi32_ps(load_bytes(p))}; }
inline float lane_sum(const F32x8& x) {
  const __m128 fours = _mm_add_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
  const __m128 pairs = _mm_add_ps(fours, _mm_movehl_ps(fours, fours));
  return _mm_cvtss_f32(_mm_add_ss(pairs, _mm_movehdup_ps(pairs)));
}
// Eight at once, each in the order of lane_sum.
YOCOBIT_INLINE __m256 eight_lane_sums(const F32x8* x) {
  __m256 fours[4], pairs[2];  // of x[i] in the low half, of x[i + 4] in the high one
  for (int i = 0; i < 4; ++i) {
    fours[i] = _mm256_add_ps(_mm256_blend_ps(x[i].v, x[i + 4].v, 0xf0),
                             _mm256_permute2f128_ps(x[i].v, x[i + 4].v, 0x21));
  }
  for (int i = 0; i < 2; ++i) {
    const __m256d first = _mm256_castps_pd(fours[2 * i]);
    const __m256d second = _mm256_castps_pd(fours[2 * i + 1]);
    pairs[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(first, second)),
                             _mm256_castpd_ps(_mm256_unpackhi_pd(first, second)));
  }
  return _mm256_add_ps(_mm256_shuffle_ps(pairs[0], pairs[1], 0x88),
                       _mm256_shuffle_ps(pairs[0], pairs[1], 0xdd));
}
template <int n, int run>
YOCOBIT_INLINE void lane_sums(const F32x8* x, float* sums, ptrdiff_t stride) {
  for (int i = 0; i < n; i += 8) {
    F32x8 eight[8];
    for (int j = 0; j < 8; ++j) eight[j] = x[i + j < n ? i + j : i];
    const __m256 totals = eight_lane_sums(eight);
    const __m128 halves[] = {_mm256_castps256_ps128(totals), _mm256_extractf128_ps(totals, 1)};
    if constexpr (n % 8 == 0 && run % 8 == 0) {
      _mm256_storeu_ps(sums + i / run * stride + i % run, totals);
    } else if constexpr (n % 8 == 0 && run == 4) {
      for (int j = 0; j < 2; ++j) _mm_storeu_ps(sums + (i / run + j) * stride, halves[j]);
    } else if constexpr (n % 8 == 0 && run == 2) {
      for (int j = 0; j < 2; ++j) {
        float* first = sums + (i / run + 2 * j) * stride;
        _mm_storel_pi(reinterpret_cast<__m64*>(first), halves[j]);
        _mm_storeh_pi(reinterpret_cast<__m64*>(first + stride), halves[j]);
      }
    } else {
      float each[8];
      _mm256_storeu_ps(each, totals);
      for (int j = i; j < i + 8 && j < n; ++j) sums[j / run * stride + j % run] = each[j - i];
    }
  }
}
inline float lane_max(const F32x8& x) {
  const __m128 fours = _mm_max_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
  const __m128 pairs = _mm_max_ps(fours, _mm_movehl_ps(fours, fours));
  return _mm_cvtss_f32(_mm_max_ss(pairs, _mm_movehdup_ps(pairs)));
}
// Without it GCC reads x from memory for every use, and loads limit the rate of multiplications.
inline F32x8 in_register(F32x8 x) {
  asm("" : "+v"(x.v));
  return x;
}
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
inline float square_root(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }
inline uint16_t half_from_float(float x) {
  return static_cast<uint16_t>(
      _mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT)));
}

inline void transpose(F32x8 (&rows)[kLanes]) {
  __m256 pairs[8], fours[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(rows[i].v, rows[i + 1].v);
    pairs[i + 1] = _mm256_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 8; i += 4) {
    fours[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    fours[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    fours[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    fours[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    rows[i].v = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
    rows[i + 4].v = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
  }
}

// kRows rows of two 16-byte lanes, as columns of kRows bytes in order in each lane.
template <int kRows>
inline void transpose_byte_lanes(__m256i* rows) {
  __m256i shuffled[kRows];
  for (int stage = 1; stage < kRows; stage *= 2) {
    for (int i = 0; i < kRows / 2; ++i) {
      shuffled[2 * i] = _mm256_unpacklo_epi8(rows[i], rows[i + kRows / 2]);
      shuffled[2 * i + 1] = _mm256_unpackhi_epi8(rows[i], rows[i + kRows / 2]);
    }
    for (int i = 0; i < kRows; ++i) rows[i] = shuffled[i];
  }
}

inline void transpose_bytes(const int8_t* x, ptrdiff_t stride, int n, int8_t* columns,
                            ptrdiff_t column_stride) {
  __m256i rows[16];
  for (int t = 0; t < 16; ++t) {
    rows[t] = t < n ? load_bytes(x + t * stride) : _mm256_setzero_si256();
  }
  transpose_byte_lanes<16>(rows);
  for (int i = 0; i < 16; ++i) {
    _mm_store_si128(reinterpret_cast<__m128i*>(columns + i * column_stride),
                    _mm256_castsi256_si128(rows[i]));
    _mm_store_si128(reinterpret_cast<__m128i*>(columns + (i + 16) * column_stride),
                    _mm256_extracti128_si256(rows[i], 1));
  }
}

struct I32x8 {
  __m256i v;
};

inline I32x8 splat_i32(int32_t x) { return {_mm256_set1_epi32(x)}; }
inline I32x8 add(const I32x8& a, const I32x8& b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline I32x8 sub(const I32x8& a, const I32x8& b) { return {_mm256_sub_epi32(a.v, b.v)}; }
inline I32x8 max(const I32x8& a, const I32x8& b) { return {_mm256_max_epi32(a.v, b.v)}; }
inline void store(int32_t* p, const I32x8& x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.v);
}
inline I32x8 magnitude_bits(const F32x8& x) {
  return {_mm256_and_si256(_mm256_castps_si256(x.v), _mm256_set1_epi32(0x7fffffff))};
}
inline I32x8 greater(const F32x8& a, const F32x8& b) {
  return {_mm256_castps_si256(_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ))};
}
// What is not finite converts to an integer whose lower half is 0.
inline I32x8 int16_pairs(const F32x8& first, const F32x8& second) {
  const __m256i low = _mm256_and_si256(_mm256_cvtps_epi32(first.v), _mm256_set1_epi32(0xffff));
  return {_mm256_or_si256(low, _mm256_slli_epi32(_mm256_cvtps_epi32(second.v), 16))};
}

struct U8x32 {
  __m256i v;
};

inline U8x32 splat_u8(int x) { return {_mm256_set1_epi8(static_cast<char>(x))}; }
inline U8x32 add(const U8x32& a, const U8x32& b) { return {_mm256_add_epi8(a.v, b.v)}; }
inline U8x32 bit_or(const U8x32& a, const U8x32& b) { return {_mm256_or_si256(a.v, b.v)}; }
inline U8x32 shift_left(const U8x32& x, int bits) { return {_mm256_slli_epi16(x.v, bits)}; }
inline void store(uint8_t* p, const U8x32& x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.v);
}
inline U8x32 to_bytes(const I32x8 (&quarters)[4]) {
  const __m256i low = _mm256_packs_epi32(quarters[0].v, quarters[1].v);
  const __m256i high = _mm256_packs_epi32(quarters[2].v, quarters[3].v);
  return {_mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high),
                                      _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))};
}
inline void transpose_to(uint8_t* out, const U8x32 (&rows)[8]) {
  __m256i bytes[8];
  for (int r = 0; r < 8; ++r) bytes[r] = rows[r].v;
  transpose_byte_lanes<8>(bytes);
  auto* columns = reinterpret_cast<__m128i*>(out);
  for (int r = 0; r < 8; ++r) {
    _mm_storeu_si128(columns + r, _mm256_castsi256_si128(bytes[r]));
    _mm_storeu_si128(columns + 8 + r, _mm256_extracti128_si256(bytes[r], 1));
  }
}

#ifndef YOCOBIT_HAS_WIDE_LANES

template <int kSumTokens>
struct I16Sums {
  static constexpr int kTokens = kSumTokens, kVectors = kTokens / 16;
  __m256i parts[kVectors];

  static I16Sums widened(const int8_t* bytes) {
    I16Sums sums;
    for (int i = 0; i < kVectors; ++i) {
      sums.parts[i] =
          _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes) + i));
    }
    return sums;
  }
  I16Sums operator+(const I16Sums& other) const {
    I16Sums sums;
    for (int i = 0; i < kVectors; ++i) {
      sums.parts[i] = _mm256_add_epi16(parts[i], other.parts[i]);
    }
    return sums;
  }
  I16Sums operator-(const I16Sums& other) const {
    I16Sums sums;
    for (int i = 0; i < kVectors; ++i) {
      sums.parts[i] = _mm256_sub_epi16(parts[i], other.parts[i]);
    }
    return sums;
  }
  void add_to(int32_t* totals) const {
    auto* total = reinterpret_cast<__m256i*>(totals);
    for (int i = 0; i < kVectors; ++i) {
      const __m256i low = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(parts[i]));
      const __m256i high = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(parts[i], 1));
      total[2 * i] = _mm256_add_epi32(total[2 * i], low);
      total[2 * i + 1] = _mm256_add_epi32(total[2 * i + 1], high);
    }
  }
};

struct F32x16 {
  __m256 low, high;
};

inline F32x16 splat_like(const F32x16&, float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F32x16 add(const F32x16& a, const F32x16& b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
inline F32x16 sub(const F32x16& a, const F32x16& b) {
  return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}

struct Int16Pairs {
  using Vector = __m256i;
  static constexpr int kLanes = 8;

  static Vector zero() { return _mm256_setzero_si256(); }
  static Vector splat(int32_t pair) { return _mm256_set1_epi32(pair); }
  static Vector widened(const int8_t* first, const int8_t* second) {
    const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(first));
    const __m128i high =
        second ? _mm_loadl_epi64(reinterpret_cast<const __m128i*>(second)) : _mm_setzero_si128();
    return _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(low, high));
  }
  static Vector multiply_add(Vector sum, Vector a, Vector b) { return dot_pairs(sum, a, b); }
  static void store_floats(float* p, Vector sum) { _mm256_storeu_ps(p, _mm256_cvtepi32_ps(sum)); }
};

#endif  // YOCOBIT_HAS_WIDE_LANES

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
