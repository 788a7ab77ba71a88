// Norm, activations, rope and sums of rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/generic/floats-inl.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

void rms_norm(const float* x, const float* weight, int size, float eps, float* y) {
  F32x8 sum = zero();
  for (int i = 0; i < size; i += kLanes) sum = fma(load(x + i), load(x + i), sum);
  const F32x8 factor = splat(1.0f / square_root(lane_sum(sum) / static_cast<float>(size) + eps));
  for (int i = 0; i < size; i += kLanes) {
    const F32x8 normed = mul(load(x + i), factor);
    store(y + i, weight ? mul(normed, load(weight + i)) : normed);
  }
}

void silu_multiply(const float* gate, const float* up, int size, float* y) {
  for (int i = 0; i < size; i += kLanes) {
    const F32x8 g = load(gate + i);
    const F32x8 divisor = add(splat(1.0f), exponential(sub(zero(), g)));
    store(y + i, mul(div(g, divisor), load(up + i)));
  }
}

// gelu(g) = g / 2 (1 + tanh(u)) = g / (1 + e^(-2 u)) with u = sqrt(2 / pi) (g + 0.044715 g^3).
void gelu_multiply(const float* gate, const float* up, int size, float* y) {
  constexpr float kRate = -1.5957691216057308f;  // -2 sqrt(2 / pi)
  for (int i = 0; i < size; i += kLanes) {
    const F32x8 g = load(gate + i);
    const F32x8 argument = fma(mul(mul(g, g), g), splat(0.044715f), g);
    const F32x8 divisor = add(splat(1.0f), exponential(mul(argument, splat(kRate))));
    store(y + i, mul(div(g, divisor), load(up + i)));
  }
}

void relu2_multiply(const float* gate, const float* up, int size, float* y) {
  for (int i = 0; i < size; i += kLanes) {
    const F32x8 positive = max(load(gate + i), zero());
    store(y + i, mul(mul(positive, positive), load(up + i)));
  }
}

void sign(const float* x, int size, float* y) {
  for (int i = 0; i < size; ++i) y[i] = x[i] > 0.0f ? 1.0f : -1.0f;
}

void exponentials(const float* x, int size, float largest, float rate, float* y) {
  const auto shares = [&](const auto& logits) {
    return exponential(mul(sub(logits, splat_like(logits, largest)), splat_like(logits, rate)));
  };
  int i = 0;
  for (; i + kWideLanes <= size; i += kWideLanes) store(y + i, shares(load_wide(x + i)));
  for (; i < size; i += kLanes) store(y + i, shares(load(x + i)));
}

void rope_interleaved(float* x, const float* cosine, const float* sine, int head_dim) {
  for (int i = 0; i < head_dim / 2; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1];
    x[2 * i] = a * cosine[i] - b * sine[i];
    x[2 * i + 1] = a * sine[i] + b * cosine[i];
  }
}

void rope_half(float* x, const float* cosine, const float* sine, int head_dim) {
  const int half = head_dim / 2;
  for (int i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    x[i] = a * cosine[i] - b * sine[i];
    x[i + half] = a * sine[i] + b * cosine[i];
  }
}

void add(const float* x, int size, float* y) {
  for (int i = 0; i < size; ++i) y[i] += x[i];
}

void add_scaled(const float* x, float factor, int size, float* y) {
  for (int i = 0; i < size; i += kLanes) {
    store(y + i, fma(load(x + i), splat(factor), load(y + i)));
  }
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
