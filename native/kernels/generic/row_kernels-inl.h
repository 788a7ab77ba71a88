// The kernels of row_kernels.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/generic/floats-inl.h"
#include "kernels/row_kernels.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

F32x8 sigmoid(const F32x8& x) {
  return div(splat(1.0f), add(splat(1.0f), exponential(sub(zero(), x))));
}

float inverse_root(const F32x8& squares, int k, float eps) {
  return 1.0f / square_root(lane_sum(squares) / static_cast<float>(k) + eps);
}

// The factor of x in the gradient of x through r, where along = sum of grad * weight * x.
float slope_of(const F32x8& along, float r, int k) {
  return lane_sum(along) / static_cast<float>(-k) * r * r * r;
}

void norm(const float* x, const float* weight, int k, float eps, int64_t begin, int64_t end,
          float* y, float* r) {
  for (int64_t n = begin; n < end; ++n) {
    const float* in = x + n * k;
    F32x8 squares = zero();
    for (int i = 0; i < k; i += kLanes) squares = fma(load(in + i), load(in + i), squares);
    r[n] = inverse_root(squares, k, eps);
    const F32x8 factor = splat(r[n]);
    for (int i = 0; i < k; i += kLanes) {
      store(y + n * k + i, mul(mul(load(in + i), factor), load(weight + i)));
    }
  }
}

void norm_gradient(const float* grad, const float* x, const float* weight, const float* r, int k,
                   int64_t begin, int64_t end, float* grad_x, float* grad_weight) {
  for (int64_t n = begin; n < end; ++n) {
    const float *g = grad + n * k, *in = x + n * k;
    const F32x8 factor = splat(r[n]);
    F32x8 along = zero();
    for (int i = 0; i < k; i += kLanes) {
      const F32x8 product = mul(load(g + i), load(in + i));
      along = fma(product, load(weight + i), along);
      store(grad_weight + i, fma(product, factor, load(grad_weight + i)));
    }
    const F32x8 slope = splat(slope_of(along, r[n], k));
    for (int i = 0; i < k; i += kLanes) {
      const F32x8 direct = mul(mul(load(g + i), factor), load(weight + i));
      store(grad_x + n * k + i, fma(load(in + i), slope, direct));
    }
  }
}

const float* up_of(const GatedRows& rows, int64_t n, int head) {
  if (rows.n_heads == 0) return rows.up + n * rows.k;
  return rows.up + (head * rows.n + n) * (rows.k / rows.n_heads);
}

void gate(const GatedRows& rows, int64_t begin, int64_t end, float* y, float* r, float* head_r) {
  const int k = rows.k, heads = rows.n_heads ? rows.n_heads : 1, d = k / heads;
  for (int64_t n = begin; n < end; ++n) {
    float* out = y + n * k;
    F32x8 squares = zero();
    for (int h = 0; h < heads; ++h) {
      const float *up = up_of(rows, n, h), *gates = rows.gate + n * k + h * d;
      F32x8 factor = splat(1.0f);
      if (rows.n_heads) {
        F32x8 head_squares = zero();
        for (int i = 0; i < d; i += kLanes) {
          head_squares = fma(load(up + i), load(up + i), head_squares);
        }
        head_r[n * heads + h] = inverse_root(head_squares, d, rows.eps);
        factor = splat(head_r[n * heads + h]);
      }
      for (int i = 0; i < d; i += kLanes) {
        const F32x8 g = load(gates + i);
        const F32x8 a = mul(mul(g, sigmoid(g)), mul(load(up + i), factor));
        squares = fma(a, a, squares);
        store(out + h * d + i, a);
      }
    }
    if (!rows.weight) continue;
    r[n] = inverse_root(squares, k, rows.eps);
    const F32x8 factor = splat(r[n]);
    for (int i = 0; i < k; i += kLanes) {
      store(out + i, mul(mul(load(out + i), factor), load(rows.weight + i)));
    }
  }
}

void gate_gradient(const float* grad, const GatedRows& rows, const float* r, const float* head_r,
                   int64_t begin, int64_t end, float* grad_gate, float* grad_up,
                   float* grad_weight) {
  const int k = rows.k, heads = rows.n_heads ? rows.n_heads : 1, d = k / heads;
  for (int64_t n = begin; n < end; ++n) {
    const float *g = grad + n * k, *gates = rows.gate + n * k;
    float *sigmoids = grad_gate + n * k, *as = grad_up + n * k;  // until their gradients are known
    F32x8 along = zero();
    const F32x8 factor = splat(rows.weight ? r[n] : 1.0f);
    for (int h = 0; h < heads; ++h) {
      const float* up = up_of(rows, n, h);
      const F32x8 head_factor = splat(rows.n_heads ? head_r[n * heads + h] : 1.0f);
      for (int i = 0; i < d; i += kLanes) {
        const int at = h * d + i;
        const F32x8 s = sigmoid(load(gates + at));
        const F32x8 a = mul(mul(load(gates + at), s), mul(load(up + i), head_factor));
        store(sigmoids + at, s);
        store(as + at, a);
        if (!rows.weight) continue;
        const F32x8 product = mul(load(g + at), a);
        along = fma(product, load(rows.weight + at), along);
        store(grad_weight + at, fma(product, factor, load(grad_weight + at)));
      }
    }
    const F32x8 slope = splat(rows.weight ? slope_of(along, r[n], k) : 0.0f);
    for (int h = 0; h < heads; ++h) {
      const float* up = up_of(rows, n, h);
      const F32x8 head_factor = splat(rows.n_heads ? head_r[n * heads + h] : 1.0f);
      F32x8 head_along = zero();
      for (int i = 0; i < d; i += kLanes) {
        const int at = h * d + i;
        F32x8 grad_a = load(g + at);
        if (rows.weight) {
          grad_a = fma(load(as + at), slope, mul(mul(grad_a, factor), load(rows.weight + at)));
        }
        const F32x8 s = load(sigmoids + at), x = load(gates + at);
        const F32x8 grad_normed = mul(grad_a, mul(x, s));
        // d silu / d x = s (1 + x (1 - s))
        const F32x8 rise = mul(s, fma(x, sub(splat(1.0f), s), splat(1.0f)));
        store(grad_gate + n * k + at, mul(mul(grad_a, mul(load(up + i), head_factor)), rise));
        store(as + at, mul(grad_normed, head_factor));
        if (rows.n_heads) head_along = fma(grad_normed, load(up + i), head_along);
      }
      if (!rows.n_heads) continue;
      const F32x8 head_slope = splat(slope_of(head_along, head_r[n * heads + h], d));
      for (int i = 0; i < d; i += kLanes) {
        store(as + h * d + i, fma(load(up + i), head_slope, load(as + h * d + i)));
      }
    }
  }
}

constexpr RowKernels kGenericRowKernels = {
    .norm = norm,
    .norm_gradient = norm_gradient,
    .gate = gate,
    .gate_gradient = gate_gradient,
};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
