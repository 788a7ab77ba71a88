// Floating-point kernels of the engine against float64 within their rounding.
//
// Letters:  D head size   S cached positions

#include <algorithm>
#include <limits>

#include "kernel_equality.h"
#include "kernels/kv_tiles.h"

namespace yocobit::test {
namespace {

constexpr double kEps = 0x1p-23;

float largest_magnitude(const float* x, int n) {
  float largest = 1e-12f;
  for (int i = 0; i < n; ++i) largest = std::max(largest, std::fabs(x[i]));
  return largest;
}

std::vector<float> row_of(Fill fill, int n, Random& random) {
  std::vector<float> x = random.numbers(n, 3.0f);
  for (float& value : x) {
    if (fill == Fill::zeros) value = 0.0f;
    if (fill == Fill::largest) value = std::numeric_limits<float>::max();
    if (fill == Fill::smallest) value = -std::numeric_limits<float>::max();
  }
  return x;
}

// Rows of one K/V head as a cache keeps them.
struct Cache {
  Cache(const KernelFamily& family, FloatType type, int D, int S, const std::vector<float>& keys,
        const std::vector<float>& values)
      : row_bytes(type == FloatType::f32   ? D * 4
                  : type == FloatType::f16 ? D * 2
                  : type == FloatType::i8  ? D
                                           : (D + 15) / 16 * 8),
        capacity((S + kAttentionTile - 1) / kAttentionTile * kAttentionTile),
        rows{Aligned<uint8_t>(capacity * row_bytes), Aligned<uint8_t>(capacity * row_bytes)},
        scales{std::vector<float>(capacity, 1.0f), std::vector<float>(capacity, 1.0f)} {
    alignas(64) uint8_t row[kMaxHeadDim * 4];
    for (int s = 0; s < S; ++s) {
      for (int part = 0; part < 2; ++part) {
        const float* x = (part == 0 ? keys : values).data() + size_t(s) * D;
        family.kernels.store(x, D, type, row, &scales[part][s]);
        if (type == FloatType::f32 || type == FloatType::f16) {
          std::memcpy(rows[part].data() + s * row_bytes, row, row_bytes);
        } else if (part == 0) {
          put_row(key_byte, type, s % kAttentionTile, row_bytes, row, tile(part, s));
        } else {
          put_row(value_byte, type, s % kAttentionTile, row_bytes, row, tile(part, s));
        }
      }
    }
    view = {.keys = rows[0].data(),
            .values = rows[1].data(),
            .key_scales = scales[0].data(),
            .value_scales = scales[1].data(),
            .type = type,
            .row_bytes = row_bytes,
            .capacity = capacity,
            .head_dim = D};
  }

  uint8_t* tile(int part, int s) {
    return rows[part].data() + int64_t{s} / kAttentionTile * kAttentionTile * row_bytes;
  }

  int64_t row_bytes, capacity;
  Aligned<uint8_t> rows[2];
  std::vector<float> scales[2];
  KeysValues view;
};

constexpr FloatType kCacheTypes[] = {FloatType::f32, FloatType::f16, FloatType::i8, FloatType::i4};

// Bound of the rounding error of a cached value, for rows with the given largest magnitude.
double storage_error(FloatType type, double largest) {
  switch (type) {
    case FloatType::f32:
      return 0.0;
    case FloatType::f16:
      return largest * 0x1p-11;
    case FloatType::i8:
      return largest / 127 * 0.51;
    default:
      return largest / 7 * 0.51;
  }
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

uint64_t kv_rows(const KernelFamily& family) {
  Checksum checksum;
  for (const int D : {8, 24, 128, 1024}) {
    for (const FloatType type : kCacheTypes) {
      Random random(static_cast<uint32_t>(D));
      const std::vector<float> x = random.numbers(D, 2.0f);
      std::vector<float> loaded(D);
      alignas(64) uint8_t row[kMaxHeadDim * 4] = {};
      float scale = 1.0f;
      family.kernels.store(x.data(), D, type, row, &scale);
      family.kernels.load(row, scale, D, type, loaded.data());
      const double bound = storage_error(type, largest_magnitude(x.data(), D));
      for (int d = 0; d < D; ++d) check_near(loaded[d], x[d], bound, family, "store and load");
      checksum.add(row, sizeof row);
      checksum.add(loaded);
    }
  }
  return checksum.value();
}

uint64_t attention(const KernelFamily& family) {
  Checksum checksum;
  for (const int D : {8, 24, 64, 128}) {
    for (const FloatType type : kCacheTypes) {
      for (const int n_queries : {1, 2, 3, 5}) {
        constexpr int S = 203, kSplit = 96;
        Random random(static_cast<uint32_t>(D * 10 + n_queries));
        const std::vector<float> keys = random.numbers(size_t(S) * D),
                                 values = random.numbers(size_t(S) * D),
                                 q = random.numbers(size_t(n_queries) * D);
        Cache cache(family, type, D, S, keys, values);
        const float scale = 1.0f / std::sqrt(static_cast<float>(D));
        const int begin = 5, end = S;
        const ptrdiff_t stride = D + kPartialExtra;
        constexpr int kSplits = (S + kSplit - 1) / kSplit;
        std::vector<float> partials(size_t(n_queries) * kSplits * stride), o(D), whole(D);
        std::vector<float> single(size_t(n_queries) * stride);
        for (int i = 0; i < kSplits; ++i) {
          family.kernels.attend(q.data(), n_queries, cache.view, std::max(begin, i * kSplit),
                                std::min(end, (i + 1) * kSplit), scale,
                                partials.data() + i * stride, kSplits * stride);
        }
        family.kernels.attend(q.data(), n_queries, cache.view, begin, end, scale, single.data(),
                              stride);
        for (int i = 0; i < n_queries; ++i) {
          float* partial = partials.data() + i * kSplits * stride;
          family.kernels.combine(partial, stride, kSplits, D);
          family.kernels.normalize(partial, D, o.data());
          family.kernels.normalize(single.data() + i * stride, D, whole.data());
          std::vector<double> scores(S, 0.0);
          double largest = -1e300, total = 0.0;
          for (int s = begin; s < end; ++s) {
            for (int d = 0; d < D; ++d) {
              scores[s] += double{q[size_t(i) * D + d]} * keys[size_t(s) * D + d] * scale;
            }
            largest = std::max(largest, scores[s]);
          }
          for (int s = begin; s < end; ++s) total += std::exp(scores[s] - largest);
          // The error of a score is that of a key times |q|_1; of an output twice that, for
          // |v| <= 1, plus that of a value. 1e-4 covers rounding, as of 15-bit queries and weights.
          double magnitude = 0.0;
          for (int d = 0; d < D; ++d) magnitude += std::fabs(q[size_t(i) * D + d]);
          const double lost = storage_error(type, 1.0);
          const double bound = 2 * std::expm1(2 * lost * magnitude * scale) + lost + 1e-4;
          for (int d = 0; d < D; ++d) {
            double expected = 0.0;
            for (int s = begin; s < end; ++s) {
              expected += std::exp(scores[s] - largest) / total * values[size_t(s) * D + d];
            }
            check_near(o[d], expected, bound, family, "attention of KV splits");
            check_near(whole[d], expected, bound, family, "attention");
          }
          checksum.add(o);
          checksum.add(whole);
        }
      }
    }
  }
  return checksum.value();
}

}  // namespace yocobit::test
