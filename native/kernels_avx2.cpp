// Kernels for x86 with AVX2, FMA and F16C; the only file built with those flags.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace yocobit {
namespace {

constexpr int kRegisters = 16;

struct F32x8 {
  __m256 v;
};

F32x8 load(const float* p) { return {_mm256_loadu_ps(p)}; }
F32x8 load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
F32x8 load_i8(const int8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))};
}
F32x8 load_i4(const uint8_t* p, int half) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  const __m256i pairs = _mm256_cvtepi8_epi32(bytes);
  const __m256i codes =
      half ? _mm256_srai_epi32(pairs, 4) : _mm256_srai_epi32(_mm256_slli_epi32(pairs, 28), 28);
  return {_mm256_cvtepi32_ps(codes)};
}
void store(float* p, const F32x8& x) { _mm256_storeu_ps(p, x.v); }
F32x8 splat(float x) { return {_mm256_set1_ps(x)}; }
F32x8 zero() { return {_mm256_setzero_ps()}; }
F32x8 fma(const F32x8& a, const F32x8& b, const F32x8& c) {
  return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
F32x8 mul(const F32x8& a, const F32x8& b) { return {_mm256_mul_ps(a.v, b.v)}; }
F32x8 add(const F32x8& a, const F32x8& b) { return {_mm256_add_ps(a.v, b.v)}; }
F32x8 sub(const F32x8& a, const F32x8& b) { return {_mm256_sub_ps(a.v, b.v)}; }
F32x8 div(const F32x8& a, const F32x8& b) { return {_mm256_div_ps(a.v, b.v)}; }
F32x8 min(const F32x8& a, const F32x8& b) { return {_mm256_min_ps(a.v, b.v)}; }
F32x8 max(const F32x8& a, const F32x8& b) { return {_mm256_max_ps(a.v, b.v)}; }
F32x8 abs(const F32x8& x) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), x.v)}; }
F32x8 power_of_two(const F32x8& n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23))};
}
__m128i to_int16(const F32x8& x) {
  const __m256i wide = _mm256_cvtps_epi32(x.v);
  return _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
}
void store_codes(int16_t* p, const F32x8& x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_int16(x));
}
void store_codes(int8_t* p, const F32x8& x) {
  const __m128i narrow = to_int16(x);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(narrow, narrow));
}
float lane_sum(const F32x8& x) {
  const __m128 fours = _mm_add_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
  const __m128 pairs = _mm_add_ps(fours, _mm_movehl_ps(fours, fours));
  return _mm_cvtss_f32(_mm_add_ss(pairs, _mm_movehdup_ps(pairs)));
}
// Eight at once, each in the order of lane_sum.
[[gnu::always_inline]] inline __m256 eight_lane_sums(const F32x8* x) {
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
[[gnu::always_inline]] inline void lane_sums(const F32x8* x, float* sums, ptrdiff_t stride) {
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
float lane_max(const F32x8& x) {
  const __m128 fours = _mm_max_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
  const __m128 pairs = _mm_max_ps(fours, _mm_movehl_ps(fours, fours));
  return _mm_cvtss_f32(_mm_max_ss(pairs, _mm_movehdup_ps(pairs)));
}
// Else GCC reads x from memory for every use, and loads bound what multiplications should.
F32x8 in_register(F32x8 x) {
  asm("" : "+v"(x.v));
  return x;
}
void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
float square_root(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }
uint16_t half_from_float(float x) {
  return static_cast<uint16_t>(
      _mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT)));
}

#include "kernels_float.inc"
#include "kernels_mixers.inc"

__m256i load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

int32_t lane_sum(const __m256i& x) {
  const __m128i halves = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  const __m128i pairs = _mm_add_epi32(halves, _mm_shuffle_epi32(halves, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(pairs, _mm_shuffle_epi32(pairs, 0xb1)));
}

// int16 budget of both weight kinds: maddubs adds two products of a code (<= 3, if a file is
// corrupt) and an activation (<= 127), 762 at most; ternary adds 4 of those to a lane per block,
// 3048, and 10 blocks reach 30480. Sign adds 8 of at most 254, 2032: 16 would fit.
constexpr int kBlocksPerWidening = 10;

// Each kind walks the 32-byte vectors of codes that a block unpacks to.
struct Ternary {
  static constexpr int kGroups = 4;
  static __m256i codes(const __m256i& packed, int group) {
    // Shifted in 16 bits: what crosses a byte is masked off.
    return _mm256_and_si256(_mm256_srli_epi16(packed, 2 * group), _mm256_set1_epi8(3));
  }
  // sum (code - 1) x = sum code x - sum x
  static int32_t weigh(int32_t code_sum, int32_t x_sum) { return code_sum - x_sum; }
};

struct Sign {
  static constexpr int kGroups = 8;
  static __m256i codes(const __m256i& packed, int group) {
    return _mm256_and_si256(_mm256_srli_epi16(packed, group), _mm256_set1_epi8(1));
  }
  // sum (2 code - 1) x = 2 sum code x - sum x
  static int32_t weigh(int32_t code_sum, int32_t x_sum) { return 2 * code_sum - x_sum; }
};

// kRows rows of a group by kTokens tokens: every unpacked code vector serves kTokens tokens and
// every activation vector kRows rows.
template <typename Kind, int kRows, int kTokens>
void matmul_tile(const BitMatrix& w, const QuantizedRows& x, int group, int first_row,
                 int first_token, float* y, ptrdiff_t y_stride) {
  const uint8_t* codes =
      w.codes + (static_cast<size_t>(group) * w.n_blocks * kRowsPerGroup + first_row) * kBlockBytes;
  const int8_t* activations = x.codes + static_cast<size_t>(first_token) * x.stride;
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sum32[kRows][kTokens];
  for (auto& row : sum32) {
    for (auto& sum : row) sum = _mm256_setzero_si256();
  }
  for (int begin = 0; begin < w.n_blocks; begin += kBlocksPerWidening) {
    const int end =
        begin + kBlocksPerWidening < w.n_blocks ? begin + kBlocksPerWidening : w.n_blocks;
    __m256i sum16[kRows][kTokens];
    for (auto& row : sum16) {
      for (auto& sum : row) sum = _mm256_setzero_si256();
    }
    for (int block = begin; block < end; ++block) {
      const uint8_t* packed = codes + static_cast<size_t>(block) * kRowsPerGroup * kBlockBytes;
      const int8_t* columns = activations + block * Kind::kGroups * kBlockBytes;
#pragma GCC unroll 8
      for (int group_of = 0; group_of < Kind::kGroups; ++group_of) {
        __m256i xs[kTokens];
        for (int t = 0; t < kTokens; ++t) {
          xs[t] = load_bytes(columns + static_cast<size_t>(t) * x.stride + group_of * kBlockBytes);
        }
        for (int r = 0; r < kRows; ++r) {
          const __m256i unpacked = Kind::codes(load_bytes(packed + r * kBlockBytes), group_of);
          for (int t = 0; t < kTokens; ++t) {
            sum16[r][t] = _mm256_add_epi16(sum16[r][t], _mm256_maddubs_epi16(unpacked, xs[t]));
          }
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int t = 0; t < kTokens; ++t) {
        sum32[r][t] = _mm256_add_epi32(sum32[r][t], _mm256_madd_epi16(sum16[r][t], ones));
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const int m = group * kRowsPerGroup + first_row + r;
    if (m >= w.m) return;
    for (int t = 0; t < kTokens; ++t) {
      const int n = first_token + t;
      const int32_t sum = Kind::weigh(lane_sum(sum32[r][t]), x.sums[n]);
      y[n * y_stride + m] = static_cast<float>(sum) * (x.scales[n] * w.scale);
    }
  }
}

#include "table_matmul_avx2.inc"

template <typename Kind, typename Tables>
void bit_matmul(const BitMatrix& w, const QuantizedRows& x, int group_begin, int group_end,
                float* y, ptrdiff_t y_stride) {
  int token = 0;
  for (; token + kTokenBlock <= x.n; token += kTokenBlock) {
    constexpr int kGroups = kTableRows / kRowsPerGroup;
    for (int group = group_begin; group < group_end; group += kGroups) {
      const int end = group + kGroups < group_end ? group + kGroups : group_end;
      table_tile<Tables>(w, x, token, group, end, y, y_stride);
    }
  }
  for (int group = group_begin; group < group_end; ++group) {
    int n = token;
    for (; n + 4 <= x.n; n += 4) {
      for (int row = 0; row < kRowsPerGroup; row += 2) {
        matmul_tile<Kind, 2, 4>(w, x, group, row, n, y, y_stride);
      }
    }
    for (; n < x.n; ++n) matmul_tile<Kind, 8, 1>(w, x, group, 0, n, y, y_stride);
  }
}

void ternary_matmul(const BitMatrix& w, const QuantizedRows& x, int group_begin, int group_end,
                    float* y, ptrdiff_t y_stride) {
  bit_matmul<Ternary, TernaryTables>(w, x, group_begin, group_end, y, y_stride);
}

void sign_matmul(const BitMatrix& w, const QuantizedRows& x, int group_begin, int group_end,
                 float* y, ptrdiff_t y_stride) {
  bit_matmul<Sign, SignTables>(w, x, group_begin, group_end, y, y_stride);
}

// int32 budget: a lane gets a sixteenth of the columns as pairs, 2 * 127 * 16383 at most each, and
// 512 of those stay below 2^31.
constexpr int kColumnsPerWidening = 512 * 16;

int64_t lane_sum_wide(const __m256i& x) {
  const __m256i sums = _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_castsi256_si128(x)),
                                        _mm256_cvtepi32_epi64(_mm256_extracti128_si256(x, 1)));
  const __m128i pair =
      _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  return _mm_cvtsi128_si64(pair) + _mm_extract_epi64(pair, 1);
}

// Weights of kRows rows widened to int16, each serving kTokens tokens. The last 8 columns may be
// alone: activations are padded with zeros, weights are not padded at all.
template <int kRows, int kTokens>
void int8_tile(const DenseMatrix& w, const WideRows& x, int m, int n, float* y,
               ptrdiff_t y_stride) {
  const int8_t* weights = static_cast<const int8_t*>(w.values) + static_cast<size_t>(m) * w.k;
  const int16_t* inputs = x.codes + static_cast<size_t>(n) * x.stride;
  int64_t totals[kRows][kTokens] = {};
  for (int begin = 0; begin < w.k; begin += kColumnsPerWidening) {
    const int end = begin + kColumnsPerWidening < w.k ? begin + kColumnsPerWidening : w.k;
    __m256i sums[kRows][kTokens];
    for (auto& row : sums) {
      for (auto& sum : row) sum = _mm256_setzero_si256();
    }
    const auto add_columns = [&](int k, auto load) {
      __m256i xs[kTokens];
      for (int t = 0; t < kTokens; ++t) {
        xs[t] = load_bytes(inputs + static_cast<size_t>(t) * x.stride + k);
      }
      for (int r = 0; r < kRows; ++r) {
        const auto* row =
            reinterpret_cast<const __m128i*>(weights + static_cast<size_t>(r) * w.k + k);
        const __m256i wide = _mm256_cvtepi8_epi16(load(row));
        for (int t = 0; t < kTokens; ++t) {
          sums[r][t] = _mm256_add_epi32(sums[r][t], _mm256_madd_epi16(wide, xs[t]));
        }
      }
    };
    int k = begin;
    for (; k + 16 <= end; k += 16)
      add_columns(k, [](const __m128i* p) { return _mm_loadu_si128(p); });
    if (k < end) add_columns(k, [](const __m128i* p) { return _mm_loadl_epi64(p); });
    for (int r = 0; r < kRows; ++r) {
      for (int t = 0; t < kTokens; ++t) totals[r][t] += lane_sum_wide(sums[r][t]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kTokens; ++t) {
      y[(n + t) * y_stride + m + r] =
          static_cast<float>(totals[r][t]) * (x.scales[n + t] * w.scales[m + r]);
    }
  }
}

void int8_matmul(const DenseMatrix& w, const WideRows& x, int row_begin, int row_end, float* y,
                 ptrdiff_t y_stride) {
  int m = row_begin;
  for (; m + 4 <= row_end; m += 4) {
    int n = 0;
    for (; n + 2 <= x.n; n += 2) int8_tile<4, 2>(w, x, m, n, y, y_stride);
    for (; n < x.n; ++n) int8_tile<4, 1>(w, x, m, n, y, y_stride);
  }
  for (; m < row_end; ++m) {
    for (int n = 0; n < x.n; ++n) int8_tile<1, 1>(w, x, m, n, y, y_stride);
  }
}

// Sums of the lanes of eight vectors, the i-th in lane i.
__m256i lane_sums(const __m256i* x) {
  const __m256i low =
      _mm256_hadd_epi32(_mm256_hadd_epi32(x[0], x[1]), _mm256_hadd_epi32(x[2], x[3]));
  const __m256i high =
      _mm256_hadd_epi32(_mm256_hadd_epi32(x[4], x[5]), _mm256_hadd_epi32(x[6], x[7]));
  return _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20),
                          _mm256_permute2x128_si256(low, high, 0x31));
}

// The eight rows of a group by kTokens tokens. sum (code - 8) x = sum code x - 8 sum x.
template <int kTokens>
void int4_tile(const Int4Matrix& w, const WideRows& x, int group, int n, float* y,
               ptrdiff_t y_stride) {
  const __m256i low_four_bits = _mm256_set1_epi8(15);
  const int blocks_per_row = x.stride / kInt4Block;
  __m256 totals[kTokens];
  for (__m256& total : totals) total = _mm256_setzero_ps();
  for (int block = 0; block < w.n_blocks; ++block) {
    const size_t at = (static_cast<size_t>(group) * w.n_blocks + block) * kRowsPerGroup;
    __m256i sums[kTokens][kRowsPerGroup];
    for (int r = 0; r < kRowsPerGroup; ++r) {
      const __m256i packed = load_bytes(w.codes + (at + r) * kBlockBytes);
      const __m256i low = _mm256_and_si256(packed, low_four_bits);
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(packed, 4), low_four_bits);
      const __m256i weights[4] = {_mm256_cvtepu8_epi16(_mm256_castsi256_si128(low)),
                                  _mm256_cvtepu8_epi16(_mm256_extracti128_si256(low, 1)),
                                  _mm256_cvtepu8_epi16(_mm256_castsi256_si128(high)),
                                  _mm256_cvtepu8_epi16(_mm256_extracti128_si256(high, 1))};
      for (int t = 0; t < kTokens; ++t) {
        const int16_t* inputs =
            x.codes + static_cast<size_t>(n + t) * x.stride + block * kInt4Block;
        const __m256i first =
            _mm256_add_epi32(_mm256_madd_epi16(weights[0], load_bytes(inputs)),
                             _mm256_madd_epi16(weights[1], load_bytes(inputs + 16)));
        const __m256i second =
            _mm256_add_epi32(_mm256_madd_epi16(weights[2], load_bytes(inputs + 32)),
                             _mm256_madd_epi16(weights[3], load_bytes(inputs + 48)));
        sums[t][r] = _mm256_add_epi32(first, second);
      }
    }
    const __m256 scales =
        _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w.scales + at)));
    for (int t = 0; t < kTokens; ++t) {
      const __m256i offset =
          _mm256_set1_epi32(8 * x.sums[static_cast<size_t>(n + t) * blocks_per_row + block]);
      const __m256i sum = _mm256_sub_epi32(lane_sums(sums[t]), offset);
      totals[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scales, totals[t]);
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    float out[kRowsPerGroup];
    _mm256_storeu_ps(out, _mm256_mul_ps(totals[t], _mm256_set1_ps(x.scales[n + t])));
    for (int r = 0; r < kRowsPerGroup && group * kRowsPerGroup + r < w.m; ++r) {
      y[(n + t) * y_stride + group * kRowsPerGroup + r] = out[r];
    }
  }
}

void int4_matmul(const Int4Matrix& w, const WideRows& x, int group_begin, int group_end, float* y,
                 ptrdiff_t y_stride) {
  for (int group = group_begin; group < group_end; ++group) {
    int n = 0;
    for (; n + 4 <= x.n; n += 4) int4_tile<4>(w, x, group, n, y, y_stride);
    for (; n < x.n; ++n) int4_tile<1>(w, x, group, n, y, y_stride);
  }
}

}  // namespace

#define YOCOBIT_KERNEL_TABLE kAvx2Kernels
#define YOCOBIT_KERNEL_NAME "avx2"
#include "kernel_table.inc"

}  // namespace yocobit
