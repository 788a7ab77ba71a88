// Gated retention, recurrent over positions: state = decay * state + k^T v; o = q state.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

constexpr int kRowsAhead = 8;  // prefetch distance in rows of the state

// kVectors columns of the state over kPositions positions: an element goes through all of them
// while it is in a register.
template <typename Floats, int kVectors, int kPositions>
void retain_columns(float* state, const float* q, const float* k, const float* v, ptrdiff_t stride,
                    const float* decays, bool is_first, int head_dim, float* o) {
  constexpr int kWidth = sizeof(Floats) / sizeof(float);
  Floats decay[kPositions], values[kPositions][kVectors], sums[kPositions][kVectors];
  for (int i = 0; i < kPositions; ++i) {
    decay[i] = splat_like(Floats{}, decays[i]);
    for (int e = 0; e < kVectors; ++e) {
      values[i][e] = load_like(Floats{}, v + i * stride + e * kWidth);
      sums[i][e] = splat_like(Floats{}, 0.0f);
    }
  }
  for (int d = 0; d < head_dim; ++d) {
    float* row = state + static_cast<size_t>(d) * head_dim;
    if (is_first && d + kRowsAhead < head_dim) {
      for (int e = 0; e < kVectors * kWidth * int{sizeof(float)}; e += kCacheLine) {
        prefetch(row + kRowsAhead * head_dim + e / sizeof(float));
      }
    }
    Floats updated[kVectors];
    for (int e = 0; e < kVectors; ++e) updated[e] = load_like(Floats{}, row + e * kWidth);
    for (int i = 0; i < kPositions; ++i) {
      const Floats key = splat_like(Floats{}, k[i * stride + d]);
      const Floats query = splat_like(Floats{}, q[i * stride + d]);
      for (int e = 0; e < kVectors; ++e) {
        updated[e] = fma(key, values[i][e], mul(decay[i], updated[e]));
        sums[i][e] = fma(query, updated[e], sums[i][e]);
      }
    }
    for (int e = 0; e < kVectors; ++e) store(row + e * kWidth, updated[e]);
  }
  for (int i = 0; i < kPositions; ++i) {
    for (int e = 0; e < kVectors; ++e) store(o + i * stride + e * kWidth, sums[i][e]);
  }
}

// All columns, in blocks that stay in the first-level cache for all positions; n is a multiple of
// kPositions.
template <typename Floats, int kVectors, int kPositions>
int retain_blocks(int e, float* state, const float* q, const float* k, const float* v,
                  ptrdiff_t stride, const float* decays, int n, int head_dim, float* o) {
  constexpr int kColumns = kVectors * sizeof(Floats) / sizeof(float);
  for (; e + kColumns <= head_dim; e += kColumns) {
    for (int i = 0; i < n; i += kPositions) {
      const ptrdiff_t at = i * stride;
      retain_columns<Floats, kVectors, kPositions>(state + e, q + at, k + at, v + at + e, stride,
                                                   decays + i, i == 0, head_dim, o + at + e);
    }
  }
  return e;
}

template <int kVectors, int kPositions>
void retain_positions(float* state, const float* q, const float* k, const float* v,
                      ptrdiff_t stride, const float* decays, int n, int head_dim, float* o) {
  const int e =
      retain_blocks<F32xN, kVectors, kPositions>(0, state, q, k, v, stride, decays, n, head_dim, o);
  retain_blocks<F32x8, 1, kPositions>(e, state, q, k, v, stride, decays, n, head_dim, o);
}

// A remaining position streams the state from memory once: more columns at a time are faster.
void retain(float* state, const float* q, const float* k, const float* v, ptrdiff_t stride,
            const float* decays, int n, int head_dim, float* o) {
  constexpr int kPositions = kRegisters / 8, kColumns = 64;
  const int whole = n / kPositions * kPositions;
  retain_positions<2, kPositions>(state, q, k, v, stride, decays, whole, head_dim, o);
  for (int i = whole; i < n; ++i) {
    const ptrdiff_t at = i * stride;
    retain_positions<kColumns / kWideLanes, 1>(state, q + at, k + at, v + at, stride, decays + i, 1,
                                               head_dim, o + at);
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
