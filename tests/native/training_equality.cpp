// Training kernels: integers exactly, and floating-point sums in the order of training_kernels.h.
//
// Letters:  M output features of a weight   K input features   N tokens   H heads   D = K / H

#include <algorithm>
#include <limits>

#include "kernel_equality.h"

namespace yocobit::test {
namespace {

// Two weights that share an input, of rows that fill no group.
struct Weights {
  Weights(int K, bool is_ternary, Random& random) : k(K) {
    for (int i = 0; i < 2; ++i) {
      values[i] = random.numbers(size_t(kRows[i]) * K);
      master[i] = {.values = values[i].data(),
                   .m = kRows[i],
                   .scale = 0.31f + 0.1f * static_cast<float>(i),
                   .mean = is_ternary ? 0.0f : 0.02f};
    }
    projection = {.weights = master, .n_weights = 2, .k = K, .is_ternary = is_ternary};
  }

  int code(int i, int m, int column) const {
    const float w = values[i][size_t(m) * k + column];
    if (!projection.is_ternary) return w > master[i].mean ? 1 : -1;
    const float q = w / master[i].scale;
    return q > 0.5f ? 1 : q < -0.5f ? -1 : 0;
  }

  static constexpr int kRows[2] = {13, 20};
  int k;
  std::vector<float> values[2];
  MasterWeight master[2];
  MasterWeights projection;
};

struct Inputs {
  Inputs(const KernelFamily& family, const MasterWeights& p, int N, Random& random)
      : n(N),
        stride(n_blocks(p) * (p.is_ternary ? kTernaryBlock : kSignBlock)),
        x(random.numbers(size_t(N) * p.k, 2.0f)),
        codes(size_t(N) * stride),
        scales(N) {
    family.training.quantize_rows(x.data(), p.k, stride, 0, N, codes.data(), scales.data());
    rows = {
        .codes = codes.data(), .scales = scales.data(), .sums = nullptr, .n = N, .stride = stride};
  }

  int n, stride;
  std::vector<float> x;
  Aligned<int8_t> codes;
  std::vector<float> scales;
  Int8Rows rows;
};

constexpr int kInputs[] = {8, 100, 264};

}  // namespace

uint64_t training_forward(const KernelFamily& family) {
  Checksum checksum;
  for (const bool is_ternary : {true, false}) {
    for (const int K : kInputs) {
      constexpr int N = 45;
      Random random(static_cast<uint32_t>(K));
      const Weights weights(K, is_ternary, random);
      const MasterWeights& p = weights.projection;
      Inputs x(family, p, N, random);
      for (int n = 0; n < N; ++n) {
        float largest = 1e-12f;
        for (int k = 0; k < K; ++k) largest = std::max(largest, std::fabs(x.x[size_t(n) * K + k]));
        check(x.scales[n] == largest / 127.0f, family, "quantize_rows must keep the scale");
        for (int k = 0; k < x.stride; ++k) {
          const float scaled = k < K ? x.x[size_t(n) * K + k] * (127.0f / largest) : 0.0f;
          check(x.codes[size_t(n) * x.stride + k] == static_cast<int>(std::nearbyint(scaled)),
                family, "quantize_rows must round half to even");
        }
      }
      const int groups = n_groups(p);
      Aligned<uint8_t> packed(size_t(groups) * n_blocks(p) * kRowsPerGroup * kBlockBytes);
      family.training.pack(p, 0, groups / 2, packed.data());
      family.training.pack(p, groups / 2, groups, packed.data());
      checksum.add(packed.data(), packed.size());

      std::vector<float> ys[2];
      float* outputs[2];
      for (int i = 0; i < 2; ++i) {
        ys[i].resize(size_t(N) * Weights::kRows[i]);
        outputs[i] = ys[i].data();
      }
      family.training.project(p, packed.data(), x.rows, 0, kTokenBlock, outputs);
      family.training.project(p, packed.data(), x.rows, kTokenBlock, N, outputs);
      for (int i = 0; i < 2; ++i) {
        for (int n = 0; n < N; ++n) {
          for (int m = 0; m < Weights::kRows[i]; ++m) {
            int sum = 0;
            for (int k = 0; k < K; ++k) {
              sum += weights.code(i, m, k) * x.codes[size_t(n) * x.stride + k];
            }
            const float expected =
                static_cast<float>(sum) * (x.scales[n] * weights.master[i].scale);
            check(ys[i][size_t(n) * Weights::kRows[i] + m] == expected, family,
                  "project must be exact");
          }
        }
        checksum.add(ys[i]);
      }
    }
  }
  return checksum.value();
}

uint64_t training_backward(const KernelFamily& family) {
  Checksum checksum;
  for (const bool is_ternary : {true, false}) {
    for (const int K : kInputs) {
      constexpr int N = 275;  // more than a block of a weight gradient, and odd
      Random random(static_cast<uint32_t>(K));
      const Weights weights(K, is_ternary, random);
      const MasterWeights& p = weights.projection;
      const Inputs x(family, p, N, random);
      std::vector<float> grads[2], grad_ws[2];
      const float* ins[2];
      float* outs[2];
      for (int i = 0; i < 2; ++i) {
        grads[i] = random.numbers(size_t(N) * Weights::kRows[i], 1e-3f);
        grad_ws[i].resize(size_t(Weights::kRows[i]) * K);
        ins[i] = grads[i].data();
        outs[i] = grad_ws[i].data();
      }
      const int passes = n_passes(p);
      Aligned<uint8_t> packed(size_t(passes) * K * 8);
      family.training.pack_transposed(p, 0, passes, packed.data());
      checksum.add(packed.data(), packed.size());

      std::vector<float> grad_x(size_t(N) * K);
      family.training.input_gradient(p, packed.data(), ins, 0, N, grad_x.data());
      for (const int n : {0, 1, N - 1}) {
        for (int k = 0; k < K; ++k) {
          double expected = 0.0, magnitude = 0.0;
          for (int i = 0; i < 2; ++i) {
            for (int m = 0; m < Weights::kRows[i]; ++m) {
              const double term = double{grads[i][size_t(n) * Weights::kRows[i] + m]} *
                                  weights.master[i].scale * weights.code(i, m, k);
              expected += term;
              magnitude += std::fabs(term);
            }
          }
          check_near(grad_x[size_t(n) * K + k], expected, 24 * 0x1p-24 * magnitude, family,
                     "input_gradient");
        }
      }
      checksum.add(grad_x);

      family.training.weight_gradient(p, ins, x.rows, 0, 1, outs);
      family.training.weight_gradient(p, ins, x.rows, 1, n_groups(p), outs);
      for (int i = 0; i < 2; ++i) {
        for (const int m : {0, Weights::kRows[i] - 1}) {
          for (int k = 0; k < K; ++k) {
            double expected = 0.0, largest = 0.0;
            for (int n = 0; n < N; ++n) {
              const double grad = double{grads[i][size_t(n) * Weights::kRows[i] + m]} * x.scales[n];
              expected += grad * x.rows.codes[size_t(n) * x.stride + k];
              largest = std::max(largest, std::fabs(grad));
            }
            // Rounding of a gradient to int16 loses half a step of at most 127 times that.
            const double bound = N * 127 * (largest / kGradientLevels * 0.51) + 1e-12;
            check_near(grad_ws[i][size_t(m) * K + k], expected, bound, family, "weight_gradient");
          }
        }
        checksum.add(grad_ws[i]);
      }
    }
  }
  return checksum.value();
}

// Every code of a gradient and of an activation is the largest, for a block of tokens; and a
// gradient that is not finite makes its row so, and no other.
uint64_t largest_gradients(const KernelFamily& family) {
  Checksum checksum;
  constexpr int K = 40, N = kGradientBlock;
  Random random(1);
  const Weights weights(K, /*is_ternary=*/true, random);
  const MasterWeights& p = weights.projection;
  Inputs x(family, p, N, random);
  std::fill(x.scales.begin(), x.scales.end(), 1.0f);
  for (const float sign : {1.0f, -1.0f}) {
    std::vector<float> grads[2], grad_ws[2];
    const float* ins[2];
    float* outs[2];
    for (int i = 0; i < 2; ++i) {
      grads[i].assign(size_t(N) * Weights::kRows[i], sign * 0.25f);
      grad_ws[i].resize(size_t(Weights::kRows[i]) * K);
      ins[i] = grads[i].data();
      outs[i] = grad_ws[i].data();
    }
    for (int n = 0; n < N; ++n) {
      for (int k = 0; k < K; ++k) x.codes[size_t(n) * x.stride + k] = k % 2 ? -127 : 127;
    }
    grads[1][0] = std::numeric_limits<float>::infinity();
    family.training.weight_gradient(p, ins, x.rows, 0, n_groups(p), outs);
    const float product = 0.25f / kGradientLevels * static_cast<float>(N * kGradientLevels * 127);
    for (int i = 0; i < 2; ++i) {
      for (int m = 0; m < Weights::kRows[i]; ++m) {
        for (int k = 0; k < K; ++k) {
          const float actual = grad_ws[i][size_t(m) * K + k];
          const bool is_finite = i == 0 || m > 0;
          check(is_finite ? actual == (k % 2 ? -sign : sign) * product : !std::isfinite(actual),
                family, "the largest sums of weight_gradient must be exact");
        }
      }
    }
    checksum.add(grad_ws[0]);
  }
  return checksum.value();
}

uint64_t row_kernels(const KernelFamily& family) {
  const RowKernels& rows = family.rows;
  Checksum checksum;
  for (const int K : {8, 48, 264}) {
    constexpr int N = 5;
    constexpr float kEpsilon = 1e-5f;
    Random random(static_cast<uint32_t>(K));
    const std::vector<float> x = random.numbers(size_t(N) * K, 2.0f), weight = random.numbers(K),
                             up = random.numbers(size_t(N) * K),
                             grad = random.numbers(size_t(N) * K);
    std::vector<float> y(x.size()), r(N), grad_x(x.size()), grad_up(x.size()),
        grad_weight(K, 0.25f);

    rows.norm(x.data(), weight.data(), K, kEpsilon, 0, N, y.data(), r.data());
    for (int n = 0; n < N; ++n) {
      double squares = 0.0;
      for (int k = 0; k < K; ++k) squares += double{x[size_t(n) * K + k]} * x[size_t(n) * K + k];
      const double factor = 1.0 / std::sqrt(squares / K + kEpsilon);
      for (int k = 0; k < K; ++k) {
        const double expected = x[size_t(n) * K + k] * factor * weight[k];
        check_near(y[size_t(n) * K + k], expected, 64 * 0x1p-23 * std::fabs(expected), family,
                   "norm");
      }
    }
    checksum.add(y);
    checksum.add(r);
    rows.norm_gradient(grad.data(), x.data(), weight.data(), r.data(), K, 0, N, grad_x.data(),
                       grad_weight.data());
    checksum.add(grad_x);
    checksum.add(grad_weight);

    for (const int n_heads : {0, K / 8}) {
      const GatedRows gated = {.gate = x.data(),
                               .up = up.data(),
                               .weight = weight.data(),
                               .n = N,
                               .k = K,
                               .n_heads = n_heads,
                               .eps = kEpsilon};
      std::vector<float> head_r(size_t(N) * std::max(n_heads, 1));
      rows.gate(gated, 0, N, y.data(), r.data(), head_r.data());
      for (int n = 0; n < N; ++n) {  // the norm of a row of gated values, without its weight
        double squares = 0.0;
        for (int k = 0; k < K; ++k)
          squares += std::pow(double{y[size_t(n) * K + k]} / weight[k], 2);
        check_near(squares / K, 1.0, 0.1, family, "gate must normalise rows");
      }
      checksum.add(y);
      checksum.add(r);
      rows.gate_gradient(grad.data(), gated, r.data(), head_r.data(), 0, N, grad_x.data(),
                         grad_up.data(), grad_weight.data());
      checksum.add(grad_x);
      checksum.add(grad_up);
      checksum.add(grad_weight);
    }
  }
  return checksum.value();
}

}  // namespace yocobit::test
