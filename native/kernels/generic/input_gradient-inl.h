// Training, backward: the gradient of the input, by lookup tables of float sums.
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/generic/training_forward-inl.h"
#include "kernels/training_kernels.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

constexpr int kDigits = 81;             // sums of four values, each times -1, 0 or +1
constexpr int kPassBytes = 8;           // of a pass and column
constexpr int kGradientColumns = 2560;  // of a tile, whose sums stay in the second-level cache

template <bool is_ternary>
void pack_pass(const MasterWeights& p, int pass, uint8_t* codes) {
  struct {
    const float* values;
    const MasterWeight* weight;  // nullptr past the last
  } rows[kPassRows];
  int m = pass * kPassRows, i = 0;
  for (; i < p.n_weights && m >= p.weights[i].m; ++i) m -= p.weights[i].m;
  for (auto& row : rows) {
    for (; i < p.n_weights && m == p.weights[i].m; ++i) m = 0;
    row.weight = i < p.n_weights ? &p.weights[i] : nullptr;
    row.values = row.weight ? row.weight->values + static_cast<size_t>(m++) * p.k : nullptr;
  }
  for (int k = 0; k < p.k; k += 32) {
    U8x32 bytes[kPassBytes];
    for (int g = 0; g < kPassBytes; ++g) {
      U8x32 byte = splat_u8(0);
      for (int r = 3; r >= 0; --r) {
        const auto& row = rows[4 * g + r];
        const U8x32 digit = row.weight
                                ? digits_of_32<is_ternary, 2>(row.values + k, p.k - k, *row.weight)
                                : splat_u8(1);
        byte = add(add(byte, add(byte, byte)), digit);
      }
      bytes[g] = byte;
    }
    alignas(32) uint8_t columns[32 * kPassBytes];
    transpose_to(columns, bytes);
    const int n = p.k - k < 32 ? p.k - k : 32;
    __builtin_memcpy(codes + static_cast<size_t>(k) * kPassBytes, columns, n * kPassBytes);
  }
}

void pack_transposed(const MasterWeights& p, int begin, int end, uint8_t* codes) {
  for (int pass = begin; pass < end; ++pass) {
    uint8_t* out = codes + static_cast<size_t>(pass) * p.k * kPassBytes;
    p.is_ternary ? pack_pass<true>(p, pass, out) : pack_pass<false>(p, pass, out);
  }
}

// The rows of a pass of n tokens, times their weights' scales, as columns over tokens.
void gather(const MasterWeights& p, const float* const* grads, int token, int n, int pass,
            float (*columns)[kGradientTokens]) {
  alignas(32) float rows[kGradientTokens][kPassRows];
  int m = pass * kPassRows, i = 0, begin = 0;
  for (; i < p.n_weights && m >= p.weights[i].m; ++i) m -= p.weights[i].m;
  for (; i < p.n_weights && begin < kPassRows; ++i, m = 0) {
    const int M = p.weights[i].m, left = kPassRows - begin;
    const int length = M - m < left ? M - m : left;
    for (int t = 0; t < n; ++t) {
      const float* grad = grads[i] + static_cast<size_t>(token + t) * M + m;
      for (int j = 0; j < length; ++j) rows[t][begin + j] = grad[j] * p.weights[i].scale;
    }
    begin += length;
  }
  for (int t = 0; t < kGradientTokens; ++t) {
    for (int j = t < n ? begin : 0; j < kPassRows; ++j) rows[t][j] = 0.0f;
  }
  for (int t = 0; t < kGradientTokens; t += kLanes) {
    for (int j = 0; j < kPassRows; j += kLanes) {
      F32x8 eight[kLanes];
      for (int r = 0; r < kLanes; ++r) eight[r] = load(&rows[t + r][j]);
      transpose(eight);
      for (int r = 0; r < kLanes; ++r) store(&columns[j + r][t], eight[r]);
    }
  }
}

void build_sums(const F32x16* x, F32x16* sums) {
  for (int c3 = 0; c3 < 3; ++c3) {
    const F32x16 none = splat_like(F32x16{}, 0.0f);
    const F32x16 s3 = c3 == 0 ? sub(none, x[3]) : c3 == 1 ? none : add(none, x[3]);
    for (int c2 = 0; c2 < 3; ++c2) {
      const F32x16 s2 = c2 == 0 ? sub(s3, x[2]) : c2 == 1 ? s3 : add(s3, x[2]);
      for (int c1 = 0; c1 < 3; ++c1, sums += 3) {
        const F32x16 s1 = c1 == 0 ? sub(s2, x[1]) : c1 == 1 ? s2 : add(s2, x[1]);
        sums[0] = sub(s1, x[0]);
        sums[1] = s1;
        sums[2] = add(s1, x[0]);
      }
    }
  }
}

// n <= kGradientTokens tokens and n_k <= kGradientColumns columns from k on.
void gradient_tile(const MasterWeights& p, const uint8_t* codes, const float* const* grads,
                   int token, int n, int k, int n_k, float* grad_x) {
  static_assert(sizeof(F32x16) == 64 && kGradientTokens == 16);
  alignas(64) F32x16 sums[(kPassBytes - 1) * kDigits + 256];  // whatever the last byte is
  alignas(64) F32x16 totals[kGradientColumns];
  alignas(64) float columns[kPassRows][kGradientTokens];
  for (int i = 0; i < n_k; ++i) totals[i] = splat_like(F32x16{}, 0.0f);
  for (int pass = 0; pass < n_passes(p); ++pass) {
    gather(p, grads, token, n, pass, columns);
    for (int g = 0; g < kPassBytes; ++g) {
      build_sums(reinterpret_cast<const F32x16*>(columns[4 * g]), sums + g * kDigits);
    }
    const uint8_t* bytes_of = codes + (static_cast<size_t>(pass) * p.k + k) * kPassBytes;
    for (int i = 0; i < n_k; ++i) {
      uint64_t bytes;
      __builtin_memcpy(&bytes, bytes_of + i * kPassBytes, kPassBytes);
      F32x16 total = totals[i];
#pragma GCC unroll 8
      for (int g = 0; g < kPassBytes; ++g) {
        const uint64_t offset = (g == 0 ? bytes << 6 : bytes >> (8 * g - 6)) & 255 << 6;
        const char* table = reinterpret_cast<const char*>(sums + g * kDigits);
        total = add(total, *reinterpret_cast<const F32x16*>(table + offset));
      }
      totals[i] = total;
    }
  }
  const auto* of_column = reinterpret_cast<const float (*)[kGradientTokens]>(totals);
  for (int i = 0; i < n_k; i += kLanes) {
    for (int first = 0; first < n; first += kLanes) {
      F32x8 eight[kLanes];
      for (int r = 0; r < kLanes; ++r) {
        eight[r] = load(&of_column[i + r < n_k ? i + r : i][first]);
      }
      transpose(eight);
      for (int t = first; t < first + kLanes && t < n; ++t) {
        store_first(grad_x + static_cast<size_t>(token + t) * p.k + k + i, eight[t - first],
                    n_k - i);
      }
    }
  }
}

void input_gradient(const MasterWeights& p, const uint8_t* codes, const float* const* grads,
                    int begin, int end, float* grad_x) {
  const int n_tiles = (p.k + kGradientColumns - 1) / kGradientColumns;
  for (int token = begin; token < end; token += kGradientTokens) {
    const int n = end - token < kGradientTokens ? end - token : kGradientTokens;
    for (int tile = 0; tile < n_tiles; ++tile) {
      const int k = tile * kGradientColumns;
      const int n_k = p.k - k < kGradientColumns ? p.k - k : kGradientColumns;
      gradient_tile(p, codes, grads, token, n, k, n_k, grad_x);
    }
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
