// Kernels for x86 with AVX2, FMA and F16C.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/code_tiles.h"
#include "kernels/kernels.h"
#include "kernels/row_kernels.h"
#include "kernels/training_kernels.h"

namespace yocobit {
namespace {

constexpr int kRegisters = 16;

#include "simd/lanes_avx2.inc"
#include "simd/lanes_eight.inc"

__m256i load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

// clang-format off
#include "kernels/generic/kernels_float.inc"
#include "kernels/avx2/kernels_integer_avx2.inc"
#include "kernels/generic/kernels_mixers.inc"
// clang-format on

int32_t lane_sum(const __m256i& x) {
  const __m128i halves = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  const __m128i pairs = _mm_add_epi32(halves, _mm_shuffle_epi32(halves, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(pairs, _mm_shuffle_epi32(pairs, 0xb1)));
}

#include "kernels/generic/table_matmul.inc"

template <typename Kind>
void write_sum(const __m256i& code_sums, const BitMatrix& w, const QuantizedRows& x, int m, int n,
               float* y) {
  const int32_t sum = Kind::kFactor * lane_sum(code_sums) - x.sums[n];
  y[m] = static_cast<float>(sum) * (x.scales[n] * w.scale);
}

// int16 budget: in the highest place of a nibble a code is worth at most 8, so maddubs adds
// 2 * 8 * 127 to a lane for each nibble, 4064 a block, and 8 blocks reach 32512.
constexpr int kBlocksPerPlaces = 8;

// kRows rows of a group by one token. Codes stay in their places in the nibbles, which saves a
// shift; each place has sums of its own, shifted down before they are widened.
template <typename Kind, int kRows>
void matvec_rows(const BitMatrix& w, const QuantizedRows& x, int group, int first_row, int n,
                 float* y) {
  constexpr int kPlaces = 4 / Kind::kBits, kMask = (1 << Kind::kBits) - 1;
  const uint8_t* codes =
      w.codes + (static_cast<size_t>(group) * w.n_blocks * kRowsPerGroup + first_row) * kBlockBytes;
  const int8_t* inputs = x.codes + static_cast<size_t>(n) * x.stride;
  __m256i totals[kRows];
  for (__m256i& total : totals) total = _mm256_setzero_si256();
  for (int begin = 0; begin < w.n_blocks; begin += kBlocksPerPlaces) {
    const int end = begin + kBlocksPerPlaces < w.n_blocks ? begin + kBlocksPerPlaces : w.n_blocks;
    __m256i sums[kRows][kPlaces];
    for (auto& row : sums) {
      for (__m256i& sum : row) sum = _mm256_setzero_si256();
    }
    for (int block = begin; block < end; ++block, codes += kRowsPerGroup * kBlockBytes) {
      for (int r = 0; r < kRows; r += 2) {
        __builtin_prefetch(codes + r * kBlockBytes + kPrefetchBytes);
      }
      for (int half = 0; half < 2; ++half) {
        __m256i packed[kRows];
        for (int r = 0; r < kRows; ++r) {
          packed[r] = load_bytes(codes + r * kBlockBytes);
          if (half == 1) packed[r] = _mm256_srli_epi16(packed[r], 4);
        }
#pragma GCC unroll 4
        for (int place = 0; place < kPlaces; ++place, inputs += kBlockBytes) {
          const __m256i mask = _mm256_set1_epi8(kMask << (place * Kind::kBits));
          const __m256i xs = load_bytes(inputs);
          for (int r = 0; r < kRows; ++r) {
            const __m256i products = _mm256_maddubs_epi16(_mm256_and_si256(packed[r], mask), xs);
            sums[r][place] = _mm256_add_epi16(sums[r][place], products);
          }
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      __m256i sum = sums[r][0];
      for (int place = 1; place < kPlaces; ++place) {
        sum = _mm256_add_epi16(sum, _mm256_srai_epi16(sums[r][place], place * Kind::kBits));
      }
      totals[r] = _mm256_add_epi32(totals[r], _mm256_madd_epi16(sum, _mm256_set1_epi16(1)));
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const int m = group * kRowsPerGroup + first_row + r;
    if (m < w.m) write_sum<Kind>(totals[r], w, x, m, n, y);
  }
}

// int16 budget: maddubs adds two products of a code (<= 3, if a file is corrupt) and an activation
// (<= 127), 762 at most; ternary adds 4 of those to a lane per block, 3048, and 10 blocks reach
// 30480. Sign adds 8 of at most 254, 2032: 16 would fit.
constexpr int kBlocksPerWidening = 10;

// kRows rows of a group by kTokens tokens: every unpacked code vector serves kTokens tokens and
// every activation vector kRows rows.
template <typename Kind, int kRows, int kTokens>
void matmul_rows(const BitMatrix& w, const QuantizedRows& x, int group, int first_row, int n,
                 float* y, ptrdiff_t y_stride) {
  const uint8_t* codes =
      w.codes + (static_cast<size_t>(group) * w.n_blocks * kRowsPerGroup + first_row) * kBlockBytes;
  const int8_t* inputs = x.codes + static_cast<size_t>(n) * x.stride;
  const __m256i mask = _mm256_set1_epi8((1 << Kind::kBits) - 1);
  __m256i totals[kRows][kTokens];
  for (auto& row : totals) {
    for (__m256i& total : row) total = _mm256_setzero_si256();
  }
  for (int begin = 0; begin < w.n_blocks; begin += kBlocksPerWidening) {
    const int end =
        begin + kBlocksPerWidening < w.n_blocks ? begin + kBlocksPerWidening : w.n_blocks;
    __m256i sums[kRows][kTokens];
    for (auto& row : sums) {
      for (__m256i& sum : row) sum = _mm256_setzero_si256();
    }
    for (int block = begin; block < end; ++block, codes += kRowsPerGroup * kBlockBytes) {
      __builtin_prefetch(codes + kPrefetchBytes);
#pragma GCC unroll 8
      for (int place = 0; place < 8 / Kind::kBits; ++place, inputs += kBlockBytes) {
        __m256i xs[kTokens];
        for (int t = 0; t < kTokens; ++t) {
          xs[t] = load_bytes(inputs + static_cast<size_t>(t) * x.stride);
        }
        for (int r = 0; r < kRows; ++r) {
          const __m256i packed = load_bytes(codes + r * kBlockBytes);
          // Shifted in 16 bits: what crosses a byte is masked off.
          const __m256i unpacked =
              _mm256_and_si256(_mm256_srli_epi16(packed, place * Kind::kBits), mask);
          for (int t = 0; t < kTokens; ++t) {
            sums[r][t] = _mm256_add_epi16(sums[r][t], _mm256_maddubs_epi16(unpacked, xs[t]));
          }
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int t = 0; t < kTokens; ++t) {
        const __m256i widened = _mm256_madd_epi16(sums[r][t], _mm256_set1_epi16(1));
        totals[r][t] = _mm256_add_epi32(totals[r][t], widened);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const int m = group * kRowsPerGroup + first_row + r;
    for (int t = 0; t < kTokens && m < w.m; ++t) {
      write_sum<Kind>(totals[r][t], w, x, m, n + t, y + (n + t) * y_stride);
    }
  }
}

// Sums over 16 * kVectors tokens.
template <int kVectors>
struct TokenSums {
  static constexpr int kTokens = 16 * kVectors;
  __m256i parts[kVectors];

  static TokenSums widened(const __m128i* bytes) {
    TokenSums sums;
    for (int i = 0; i < kVectors; ++i) sums.parts[i] = _mm256_cvtepi8_epi16(bytes[i]);
    return sums;
  }
  TokenSums operator+(const TokenSums& other) const {
    TokenSums sums;
    for (int i = 0; i < kVectors; ++i) {
      sums.parts[i] = _mm256_add_epi16(parts[i], other.parts[i]);
    }
    return sums;
  }
  TokenSums operator-(const TokenSums& other) const {
    TokenSums sums;
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

constexpr int kTokensWorthTables = 9;  // fewer are faster by multiply-add

template <typename Kind>
void bit_matmul(const BitMatrix& w, const QuantizedRows& x, int group_begin, int group_end,
                float* y, ptrdiff_t y_stride) {
  int token = 0;
  for (; token + kTokenBlock <= x.n; token += kTokenBlock) {
    table_matmul<Kind, TokenSums<2>>(w, x, token, kTokenBlock, group_begin, group_end, y, y_stride);
  }
  for (; token + kTokensWorthTables <= x.n; token += 16) {
    const int n = x.n - token < 16 ? x.n - token : 16;
    table_matmul<Kind, TokenSums<1>>(w, x, token, n, group_begin, group_end, y, y_stride);
  }
  constexpr int kRows = 4 / (8 / Kind::kBits / 4);  // at a time: 8 sums, whatever the kind
  for (int group = group_begin; group < group_end; ++group) {
    int n = token;
    for (; n + 4 <= x.n; n += 4) {
      for (int row = 0; row < kRowsPerGroup; row += 2) {
        matmul_rows<Kind, 2, 4>(w, x, group, row, n, y, y_stride);
      }
    }
    for (; n < x.n; ++n) {
      for (int row = 0; row < kRowsPerGroup; row += kRows) {
        matvec_rows<Kind, kRows>(w, x, group, row, n, y + n * y_stride);
      }
    }
  }
}

void ternary_matmul(const BitMatrix& w, const QuantizedRows& x, int group_begin, int group_end,
                    float* y, ptrdiff_t y_stride) {
  bit_matmul<Ternary>(w, x, group_begin, group_end, y, y_stride);
}

void sign_matmul(const BitMatrix& w, const QuantizedRows& x, int group_begin, int group_end,
                 float* y, ptrdiff_t y_stride) {
  bit_matmul<Sign>(w, x, group_begin, group_end, y, y_stride);
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
  const int8_t* next = weights + static_cast<size_t>(kRows) * w.k;  // tile
  const int16_t* inputs = x.codes + static_cast<size_t>(n) * x.stride;
  int64_t totals[kRows][kTokens] = {};
  for (int begin = 0; begin < w.k; begin += kColumnsPerWidening) {
    const int end = begin + kColumnsPerWidening < w.k ? begin + kColumnsPerWidening : w.k;
    __m256i sums[kRows][kTokens];
    for (auto& row : sums) {
      for (auto& sum : row) sum = _mm256_setzero_si256();
    }
    const auto add_columns = [&](int k, auto load) {
      __builtin_prefetch(next + static_cast<size_t>(k) * kRows);
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
      const uint8_t* codes = w.codes + (at + r) * kBlockBytes;
      if (r % 2 == 0) __builtin_prefetch(codes + kPrefetchBytes);
      const __m256i packed = load_bytes(codes);
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

#include "kernels/avx2/training_avx2.inc"

}  // namespace

#define YOCOBIT_KERNEL_TABLE kAvx2Kernels
#define YOCOBIT_TRAINING_TABLE kAvx2Training
#define YOCOBIT_KERNEL_NAME "avx2"
#include "kernels/kernel_table.inc"
#define YOCOBIT_ROW_TABLE kAvx2Rows
#include "kernels/generic/row_kernels.inc"
#include "kernels/training_table.inc"

}  // namespace yocobit
