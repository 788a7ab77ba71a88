// Attention over a KV cache of any type, and the combination of KV splits (flash-decoding).
//
// Dots: as in quantized_attention-inl.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/generic/float_attention-inl.h"
#include "kernels/generic/quantized_attention-inl.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

constexpr bool has_codes(FloatType type) { return type == FloatType::i8 || type == FloatType::i4; }

template <typename Dots, FloatType type, int kQueries>
void attend_with(const AttentionQuery* queries, const KeysValues& cache, float scale) {
  if constexpr (has_codes(type)) {
    attend_to_codes<Dots, type, kQueries>(queries, kQueries, cache, scale);
  } else {
    attend_as<type, kQueries>(queries, cache, scale);
  }
}

// How many of the first n queries, up to 4, attend together: over floats those with the same
// positions, as even a weight of 0 times a value that is not finite is not 0.
inline int n_together(const AttentionQuery* queries, int n, FloatType type) {
  int count = 1;
  while (count < n && count < 4 &&
         (has_codes(type) ||
          (queries[count].begin == queries->begin && queries[count].end == queries->end))) {
    ++count;
  }
  return count;
}

template <typename Dots, FloatType type>
void attend_in_fours(const AttentionQuery* queries, int n, const KeysValues& cache, float scale) {
  while (n > 0) {
    const int count = n_together(queries, n, type);
    if (count == 4) attend_with<Dots, type, 4>(queries, cache, scale);
    if (count == 3) attend_with<Dots, type, 3>(queries, cache, scale);
    if (count == 2) attend_with<Dots, type, 2>(queries, cache, scale);
    if (count == 1) attend_with<Dots, type, 1>(queries, cache, scale);
    queries += count;
    n -= count;
  }
}

template <typename Dots>
void attend(const AttentionQuery* queries, int n, const KeysValues& cache, float scale) {
  switch (cache.type) {
    case FloatType::f32:
      return attend_in_fours<Dots, FloatType::f32>(queries, n, cache, scale);
    case FloatType::f16:
      return attend_in_fours<Dots, FloatType::f16>(queries, n, cache, scale);
    case FloatType::i8:
      return attend_in_fours<Dots, FloatType::i8>(queries, n, cache, scale);
    case FloatType::i4:
      return attend_in_fours<Dots, FloatType::i4>(queries, n, cache, scale);
  }
}

void combine(float* partials, ptrdiff_t stride, int n, int head_dim) {
  float* sum = partials;
  for (int i = 1; i < n; ++i) {
    const float* partial = partials + i * stride;
    const float before = sum[head_dim], other = partial[head_dim];
    const float largest = other > before ? other : before;
    const float rescale = exponential(before - largest), weight = exponential(other - largest);
    for (int d = 0; d < head_dim; d += kLanes) {
      store(sum + d, fma(splat(weight), load(partial + d), mul(splat(rescale), load(sum + d))));
    }
    sum[head_dim] = largest;
    sum[head_dim + 1] = rescale * sum[head_dim + 1] + weight * partial[head_dim + 1];
  }
}

void normalize(const float* partial, int head_dim, float* o) {
  const F32x8 factor = splat(1.0f / partial[head_dim + 1]);
  for (int d = 0; d < head_dim; d += kLanes) store(o + d, mul(load(partial + d), factor));
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
