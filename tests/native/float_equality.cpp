// Floating-point kernels of the engine against float64 within their rounding.
//
// Letters:  D head size

#include <algorithm>
#include <initializer_list>
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

// Random values with special ones among them, or nothing else.
std::vector<std::vector<float>> special_rows(int n, Random& random) {
  using Limits = std::numeric_limits<float>;
  constexpr float kNaN = Limits::quiet_NaN(), kInfinity = Limits::infinity();
  std::vector<std::vector<float>> rows;
  const auto add = [&](int first, int step, std::initializer_list<float> values) {
    rows.push_back(random.numbers(n, 3.0f));
    for (int i = first, count = 0; i < n; i += step, ++count) {
      rows.back()[i] = values.begin()[count % values.size()];
    }
  };
  for (const int at : {0, n / 2, n - 1}) {
    for (const float value : {kNaN, -kNaN, kInfinity, -kInfinity, Limits::max(), 1e-40f, -0.0f}) {
      add(at, n, {value});
    }
  }
  for (const int step : {1, 3}) {
    add(0, step, {kNaN});
    add(0, step, {kInfinity, -kInfinity});
    add(0, step, {kNaN, kInfinity, -kInfinity, -kNaN});
    add(0, step, {Limits::max(), -Limits::max(), 1e38f, -1e30f});
    add(0, step, {Limits::denorm_min(), -1e-40f, 1e-39f});
    add(0, step, {1e-12f, -1e-13f, 1e-40f, 0.0f});  // about the least max|x|
    add(0, step, {-0.0f, 0.0f});
  }
  return rows;
}

// round-half-even(x * factor); -levels where the product is NaN.
int code_of(float x, float factor, int levels) {
  const float scaled = x * factor;
  return std::isnan(scaled) ? -levels : static_cast<int>(std::nearbyint(scaled));
}

void quantize_row(const KernelFamily& family, const std::vector<float>& x, Checksum& checksum) {
  const int K = static_cast<int>(x.size()), padded = (K + 255) / 256 * 256;
  const float largest = largest_magnitude(x.data(), K);
  Aligned<int8_t> codes(padded);
  float scale;
  int32_t sum, expected_sum = 0;
  family.kernels.quantize_int8_row(x.data(), K, padded, codes.data(), &scale, &sum);
  for (int k = 0; k < padded; ++k) {
    const int code = k < K ? code_of(x[k], 127.0f / largest, 127) : 0;
    check(codes[k] == code, family, "quantize_int8_row must round half to even");
    expected_sum += code;
  }
  check(scale == largest / 127.0f && sum == expected_sum, family, "scale and sum of int8 codes");
  checksum.add(codes.data(), padded);
  checksum.add(&scale, 1);

  Aligned<int16_t> int16_codes(padded);
  std::vector<int32_t> sums(padded / kInt4Block), expected_sums(sums.size());
  family.kernels.quantize_int16_row(x.data(), K, padded, int16_codes.data(), &scale, sums.data());
  for (int k = 0; k < padded; ++k) {
    const int code = k < K ? code_of(x[k], kInt16Max / largest, kInt16Max) : 0;
    check(int16_codes[k] == code, family, "quantize_int16_row must round half to even");
    expected_sums[k / kInt4Block] += code;
  }
  check(scale == largest / kInt16Max && sums == expected_sums, family,
        "scale and sums of int16 codes");
  checksum.add(int16_codes.data(), padded);
  checksum.add(sums);
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

void quantize_grouped_row(const KernelFamily& family, const std::vector<float>& x, int n_parts,
                          Checksum& checksum) {
  const int K = static_cast<int>(x.size()), padded = (K + 255) / 256 * 256;
  const int n_groups = padded / kActivationGroup;
  const int plane_stride = padded + 64;  // parts need not be adjacent
  Aligned<int8_t> codes(size_t(n_parts) * plane_stride);
  std::vector<float> scales(n_groups);
  std::vector<int32_t> sums(n_groups);
  family.kernels.quantize_grouped_row(x.data(), K, padded, n_parts, plane_stride, codes.data(),
                                      scales.data(), sums.data());
  for (int group = 0; group < n_groups; ++group) {
    const int begin = group * kActivationGroup;
    const int n = std::clamp(K - begin, 0, kActivationGroup);
    const float* values = x.data() + std::min(begin, K);
    const float largest = largest_magnitude(values, n);
    const bool is_finite =
        std::all_of(values, values + n, [](float v) { return std::isfinite(v); });
    float levels = n_parts == 1 ? 127 : kInt16Max;
    if (n_parts == 1 && is_finite) {
      levels = std::round(largest / scales[group]);
      check_limit(values, n, largest, levels, family);
    }
    int32_t expected_sum = 0;
    for (int i = 0; i < kActivationGroup; ++i) {
      const float factor = levels * (1.0f / largest);
      const int expected = i < n ? code_of(values[i], factor, static_cast<int>(levels)) : 0;
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

// As int8 and int4 codes of a KV cache.
void store_head(const KernelFamily& family, const std::vector<float>& x, Checksum& checksum) {
  const int D = static_cast<int>(x.size());
  const float largest = largest_magnitude(x.data(), D);
  for (const FloatType type : {FloatType::i8, FloatType::i4}) {
    const int levels = type == FloatType::i8 ? 127 : 7;
    Aligned<uint8_t> row(D + kLanes);
    std::vector<float> loaded(D);
    float scale;
    family.kernels.store(x.data(), D, type, row.data(), &scale);
    family.kernels.load(row.data(), 1.0f, D, type, loaded.data());
    check(scale == largest / static_cast<float>(levels), family, "scale of a stored head");
    for (int d = 0; d < D; ++d) {
      const int code = code_of(x[d], static_cast<float>(levels) / largest, levels);
      check(loaded[d] == static_cast<float>(code), family, "store must round half to even");
    }
    checksum.add(loaded);
  }
}

}  // namespace

uint64_t quantize_rows(const KernelFamily& family) {
  Checksum checksum;
  for (const int K : {8, 24, 64, 200, 2560}) {
    for (const Fill fill : {Fill::random, Fill::largest, Fill::smallest, Fill::zeros}) {
      Random random(static_cast<uint32_t>(K));
      quantize_row(family, row_of(fill, K, random), checksum);
    }
  }
  return checksum.value();
}

uint64_t quantize_grouped_rows(const KernelFamily& family) {
  Checksum checksum;
  for (const int K : {8, 24, 64, 200, 2560}) {
    for (const Fill fill : {Fill::random, Fill::largest, Fill::smallest, Fill::zeros}) {
      for (const int n_parts : {1, 2}) {
        Random random(static_cast<uint32_t>(K));
        quantize_grouped_row(family, row_of(fill, K, random), n_parts, checksum);
      }
    }
  }
  return checksum.value();
}

uint64_t quantize_special_rows(const KernelFamily& family) {
  Checksum checksum;
  for (const int K : {8, 16, 24, 64, 200, 2560}) {
    Random random(static_cast<uint32_t>(K));
    for (const std::vector<float>& x : special_rows(K, random)) {
      quantize_row(family, x, checksum);
      for (const int n_parts : {1, 2}) quantize_grouped_row(family, x, n_parts, checksum);
      if (K <= kMaxHeadDim) store_head(family, x, checksum);
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
