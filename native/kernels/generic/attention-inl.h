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

template <typename Dots, FloatType type, int kQueries>
void attend_with(const float* q, const KeysValues& cache, int64_t begin, int64_t end, float scale,
                 float* partials, ptrdiff_t stride) {
  if constexpr (type == FloatType::i8 || type == FloatType::i4) {
    attend_to_codes<Dots, type, kQueries>(q, cache, begin, end, scale, partials, stride);
  } else {
    attend_as<type, kQueries>(q, cache, begin, end, scale, partials, stride);
  }
}

template <typename Dots, FloatType type>
void attend_in_fours(const float* q, int n_queries, const KeysValues& cache, int64_t begin,
                     int64_t end, float scale, float* partials, ptrdiff_t stride) {
  const int D = cache.head_dim;
  while (n_queries > 0) {
    const int n = n_queries < 4 ? n_queries : 4;
    if (n == 4) attend_with<Dots, type, 4>(q, cache, begin, end, scale, partials, stride);
    if (n == 3) attend_with<Dots, type, 3>(q, cache, begin, end, scale, partials, stride);
    if (n == 2) attend_with<Dots, type, 2>(q, cache, begin, end, scale, partials, stride);
    if (n == 1) attend_with<Dots, type, 1>(q, cache, begin, end, scale, partials, stride);
    q += n * D;
    partials += n * stride;
    n_queries -= n;
  }
}

template <typename Dots>
void attend(const float* q, int n_queries, const KeysValues& cache, int64_t begin, int64_t end,
            float scale, float* partials, ptrdiff_t stride) {
  switch (cache.type) {
    case FloatType::f32:
      return attend_in_fours<Dots, FloatType::f32>(q, n_queries, cache, begin, end, scale, partials,
                                                   stride);
    case FloatType::f16:
      return attend_in_fours<Dots, FloatType::f16>(q, n_queries, cache, begin, end, scale, partials,
                                                   stride);
    case FloatType::i8:
      return attend_in_fours<Dots, FloatType::i8>(q, n_queries, cache, begin, end, scale, partials,
                                                  stride);
    case FloatType::i4:
      return attend_in_fours<Dots, FloatType::i4>(q, n_queries, cache, begin, end, scale, partials,
                                                  stride);
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
