// Floating-point kernels of the engine against float64 within their rounding.
//
// Letters:  D head size

#include <algorithm>
#include <limits>

#include "kernel_equality.h"

namespace yocobit::test {
namespace {

constexpr double kEps = 0x1p-23;

std::vector<float> row_of(Fill fill, int n, Random& random) {
  std::vector<float> x = random.numbers(n, 3.0f);
  for (float& value : x) {
    if (fill == Fill::zeros) value = 0.0f;
    if (fill == Fill::largest) value = std::numeric_limits<float>::max();
    if (fill == Fill::smallest) value = -std::numeric_limits<float>::max();
  }
  return x;
}

}  // namespace

uint64_t quantize_rows(const KernelFamily& family) {
  Checksum checksum;
  for (const int K : {8, 24, 64, 200, 2560}) {
    for (const Fill fill : {Fill::random, Fill::largest, Fill::smallest, Fill::zeros}) {
      Random random(static_cast<uint32_t>(K));
      const std::vector<float> x = row_of(fill, K, random);
      const int padded = (K + 255) / 256 * 256;
      const float largest = largest_magnitude(x.data(), K);
      Aligned<int8_t> codes(padded);
      float scale;
      int32_t sum, expected_sum = 0;
      family.kernels.quantize_int8_row(x.data(), K, padded, codes.data(), &scale, &sum);
      for (int k = 0; k < padded; ++k) {
        const float scaled = k < K ? x[k] * (127.0f / largest) : 0.0f;
        const int code = static_cast<int>(std::nearbyint(scaled));
        check(codes[k] == code, family, "quantize_int8_row must round half to even");
        expected_sum += code;
      }
      check(scale == largest / 127.0f && sum == expected_sum, family,
            "scale and sum of int8 codes");
      checksum.add(codes.data(), padded);
      checksum.add(&scale, 1);

      Aligned<int16_t> int16_codes(padded);
      std::vector<int32_t> sums(padded / kInt4Block), expected_sums(sums.size());
      family.kernels.quantize_int16_row(x.data(), K, padded, int16_codes.data(), &scale,
                                        sums.data());
      for (int k = 0; k < padded; ++k) {
        const float scaled = k < K ? x[k] * (kInt16Max / largest) : 0.0f;
        const int code = static_cast<int>(std::nearbyint(scaled));
        check(int16_codes[k] == code, family, "quantize_int16_row must round half to even");
        expected_sums[k / kInt4Block] += code;
      }
      check(scale == largest / kInt16Max && sums == expected_sums, family,
            "scale and sums of int16 codes");
      checksum.add(int16_codes.data(), padded);
      checksum.add(sums);
    }
  }
  return checksum.value();
}

// The largest code of a group of int8 activations x [n]: that of the least squared error. The sum
// is in float64 here, so that a nearly equal error is accepted too.
void check_limit(const float* x, int n, float largest, float limit, const KernelFamily& family) {
  const auto error = [&](float of) {
    double sum = 0.0;
    for (int i = 0; i < n; ++i) {
      const float scaled = x[i] * (of * (1.0f / largest));
      sum += std::pow((scaled - std::nearbyint(scaled)) / double{of}, 2);
    }
    return sum;
  };
  for (const float other : {127.0f, 125.0f, 123.0f, 121.0f}) {
    check(error(limit) <= error(other) * (1 + 16 * kEps), family, "limit of the least error");
  }
}

uint64_t quantize_grouped_rows(const KernelFamily& family) {
  Checksum checksum;
  for (const int K : {8, 24, 64, 200, 2560}) {
    for (const Fill fill : {Fill::random, Fill::largest, Fill::smallest, Fill::zeros}) {
      for (const int n_parts : {1, 2}) {
        Random random(static_cast<uint32_t>(K));
        const std::vector<float> x = row_of(fill, K, random);
        const int padded = (K + 255) / 256 * 256, n_groups = padded / kActivationGroup;
        const int plane_stride = padded + 64;  // parts need not be adjacent
        Aligned<int8_t> codes(size_t(n_parts) * plane_stride);
        std::vector<float> scales(n_groups);
        std::vector<int32_t> sums(n_groups);
        family.kernels.quantize_grouped_row(x.data(), K, padded, n_parts, plane_stride,
                                            codes.data(), scales.data(), sums.data());
        for (int group = 0; group < n_groups; ++group) {
          const int begin = group * kActivationGroup, left = K - begin;
          const int n = std::clamp(left, 0, kActivationGroup);
          const float* values = x.data() + std::min(begin, K);
          const float largest = largest_magnitude(values, n);
          const float levels = n_parts == 1 ? std::round(largest / scales[group]) : kInt16Max;
          if (n_parts == 1) check_limit(values, n, largest, levels, family);
          int32_t expected_sum = 0;
          for (int i = 0; i < kActivationGroup; ++i) {
            const float scaled = i < n ? x[begin + i] * (levels * (1.0f / largest)) : 0.0f;
            const int expected = static_cast<int>(std::nearbyint(scaled));
            int actual = codes[begin + i];
            if (n_parts == 2) actual = kPartWeight * actual + codes[plane_stride + begin + i];
            check(actual == expected, family, "quantize_grouped_row must round half to even");
            expected_sum -= expected;
          }
          check(scales[group] == largest / levels && sums[group] == expected_sum, family,
                "scale and sum of a group of activations");
        }
        for (int part = 0; part < n_parts; ++part) {
          checksum.add(codes.data() + part * plane_stride, padded);
        }
        checksum.add(scales);
      }
    }
  }
  return checksum.value();
}

uint64_t gelu(const KernelFamily& family) {
  Checksum checksum;
  for (const int n : {8, 24, 128, 1000}) {
    Random random(static_cast<uint32_t>(n));
    const std::vector<float> x = random.numbers(n, 4.0f), up = random.numbers(n);
    std::vector<float> y(n);
    family.kernels.gelu_multiply(x.data(), up.data(), n, y.data());
    for (int i = 0; i < n; ++i) {
      const double g = x[i], u = 0.7978845608028654 * (g + 0.044715 * g * g * g);
      const double bound = (8 + 4 * std::fabs(u)) * kEps * std::fabs(y[i]);
      check_near(y[i], g / (1.0 + std::exp(-2 * u)) * up[i], bound, family, "gelu_multiply");
    }
    checksum.add(y);
  }
  return checksum.value();
}

uint64_t elementwise(const KernelFamily& family) {
  const Kernels& kernels = family.kernels;
  Checksum checksum;
  for (const int n : {8, 24, 128, 1000}) {
    Random random(static_cast<uint32_t>(n));
    const std::vector<float> x = random.numbers(n, 4.0f), weight = random.numbers(n);
    std::vector<float> y(n);

    kernels.rms_norm(x.data(), weight.data(), n, 1e-5f, y.data());
    double squares = 0.0;
    for (const float value : x) squares += double{value} * value;
    const double factor = 1.0 / std::sqrt(squares / n + 1e-5);
    for (int i = 0; i < n; ++i) {
      check_near(y[i], x[i] * factor * weight[i], (n / 8 + 8) * kEps * std::fabs(y[i]), family,
                 "rms_norm");
    }
    checksum.add(y);

    kernels.silu_multiply(x.data(), weight.data(), n, y.data());
    for (int i = 0; i < n; ++i) {
      const double silu = x[i] / (1.0 + std::exp(-double{x[i]}));
      check_near(y[i], silu * weight[i], 8 * kEps * std::fabs(y[i]), family, "silu_multiply");
    }
    checksum.add(y);

    kernels.relu2_multiply(x.data(), weight.data(), n, y.data());
    for (int i = 0; i < n; ++i) {
      const float positive = std::max(x[i], 0.0f);
      check(y[i] == positive * positive * weight[i], family, "relu2_multiply must be exact");
    }
    checksum.add(y);

    kernels.sign(x.data(), n, y.data());
    for (int i = 0; i < n; ++i) check(y[i] == (x[i] > 0 ? 1.0f : -1.0f), family, "sign");

    kernels.exponentials(x.data(), n, 5.0f, 0.7f, y.data());
    for (int i = 0; i < n; ++i) {
      const double power = (double{x[i]} - 5.0) * double{0.7f};
      check_near(y[i], std::exp(power), (4 + 2 * std::fabs(power)) * kEps * y[i], family,
                 "exponentials");
    }
    checksum.add(y);

    y = weight;
    kernels.add(x.data(), n, y.data());
    for (int i = 0; i < n; ++i) check(y[i] == weight[i] + x[i], family, "add must be exact");
    checksum.add(y);

    y = weight;
    kernels.add_scaled(x.data(), 0.7f, n, y.data());
    for (int i = 0; i < n; ++i) {
      check(y[i] == std::fma(x[i], 0.7f, weight[i]), family, "add_scaled must round once");
    }

    std::vector<float> cosine(n / 2), sine(n / 2);
    for (int i = 0; i < n / 2; ++i) {
      cosine[i] = random.number();
      sine[i] = random.number();
    }
    for (const bool is_half : {false, true}) {
      y = x;
      (is_half ? kernels.rope_half : kernels.rope_interleaved)(y.data(), cosine.data(), sine.data(),
                                                               n);
      for (int i = 0; i < n / 2; ++i) {
        const int first = is_half ? i : 2 * i, second = is_half ? i + n / 2 : 2 * i + 1;
        check(y[first] == x[first] * cosine[i] - x[second] * sine[i] &&
                  y[second] == x[first] * sine[i] + x[second] * cosine[i],
              family, "rope must rotate pairs");
      }
      checksum.add(y);
    }
  }
  return checksum.value();
}

uint64_t retention(const KernelFamily& family) {
  Checksum checksum;
  for (const int D : {8, 24, 64, 128}) {
    for (const int n : {1, 2, 7, 64}) {
      Random random(static_cast<uint32_t>(D + n));
      std::vector<float> state = random.numbers(size_t(D) * D), expected = state;
      const std::vector<float> q = random.numbers(size_t(n) * D), k = random.numbers(size_t(n) * D),
                               v = random.numbers(size_t(n) * D);
      std::vector<float> decays(n), o(size_t(n) * D);
      for (float& decay : decays) decay = 1.0f - 0.1f * std::fabs(random.number());
      family.kernels.retain(state.data(), q.data(), k.data(), v.data(), D, decays.data(), n, D,
                            o.data());
      for (int i = 0; i < n; ++i) {
        for (int e = 0; e < D; ++e) {
          float sum = 0.0f;
          for (int d = 0; d < D; ++d) {
            float& cell = expected[size_t(d) * D + e];
            cell = std::fma(k[size_t(i) * D + d], v[size_t(i) * D + e], decays[i] * cell);
            sum = std::fma(q[size_t(i) * D + d], cell, sum);
          }
          check(o[size_t(i) * D + e] == sum, family, "retain must add in order of rows");
        }
      }
      check(state == expected, family, "retain must leave the state of the last position");
      checksum.add(state);
      checksum.add(o);
    }
  }
  return checksum.value();
}

}  // namespace yocobit::test
