// Every kernel of a family against a plain statement of its contract. Inputs come from a generator
// that gives the same numbers on every machine, and every function returns a checksum of all bits
// that the kernels wrote: families are equal where their checksums are, on whatever CPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels/family.h"

namespace yocobit::test {

inline void check(bool is_true, const KernelFamily& family, const char* claim) {
  if (is_true) return;
  std::printf("%s: %s\n", family.name, claim);
  std::exit(1);
}

inline void check_near(double actual, double expected, double bound, const KernelFamily& family,
                       const char* claim) {
  if (std::fabs(actual - expected) <= bound) return;
  std::printf("%s: %s: %.9g is not within %.3g of %.9g\n", family.name, claim, actual, bound,
              expected);
  std::exit(1);
}

class Random {
 public:
  explicit Random(uint32_t seed) : state_(seed * 2654435761u + 1) {}

  uint32_t next() {
    state_ = state_ * 1664525u + 1013904223u;
    return state_ >> 8;
  }
  int between(int low, int high) { return low + static_cast<int>(next() % (high - low + 1)); }
  // In [-1, 1), near a normal distribution.
  float number() {
    float sum = 0.0f;
    for (int i = 0; i < 4; ++i) sum += static_cast<float>(next()) * 0x1p-23f - 1.0f;
    return sum * 0.25f;
  }
  std::vector<float> numbers(size_t n, float scale = 1.0f) {
    std::vector<float> values(n);
    for (float& value : values) value = number() * scale;
    return values;
  }

 private:
  uint32_t state_;
};

// FNV-1a.
class Checksum {
 public:
  template <typename T>
  void add(const T* values, size_t n) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(values);
    for (size_t i = 0; i < n * sizeof(T); ++i) hash_ = (hash_ ^ bytes[i]) * 0x100000001b3u;
  }
  template <typename T>
  void add(const std::vector<T>& values) {
    add(values.data(), values.size());
  }
  uint64_t value() const { return hash_; }

 private:
  uint64_t hash_ = 0xcbf29ce484222325u;
};

// Aligned memory with padding at the end, which kernels may read.
template <typename T>
class Aligned {
 public:
  explicit Aligned(size_t n) : size_(n), memory_(n * sizeof(T) + 8192 + 64) {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    data_ = reinterpret_cast<T*>(memory_.data() + (64 - address % 64) % 64);
  }
  Aligned(const Aligned&) = delete;
  T* data() { return data_; }
  T& operator[](size_t i) { return data_[i]; }
  size_t size() const { return size_; }

 private:
  size_t size_;
  std::vector<unsigned char> memory_;
  T* data_;
};

// Of the values of a row, at least what quantisation takes for it.
inline float largest_magnitude(const float* x, int n) {
  float largest = kSmallestAbsmax;
  for (int i = 0; i < n; ++i) largest = std::max(largest, std::fabs(x[i]));
  return largest;
}

// Values of inputs: random, all of the largest magnitude with one sign, or zeros.
enum class Fill { random, largest, smallest, zeros };

// gemm_equality.cpp
uint64_t ternary_gemm(const KernelFamily& family);
uint64_t sign_gemm(const KernelFamily& family);
uint64_t int8_gemm(const KernelFamily& family);
uint64_t int4_gemm(const KernelFamily& family);
uint64_t group_scaled_gemm(const KernelFamily& family);
uint64_t dense_gemm(const KernelFamily& family);

// float_equality.cpp
uint64_t quantize_rows(const KernelFamily& family);
uint64_t quantize_grouped_rows(const KernelFamily& family);
uint64_t quantize_special_rows(const KernelFamily& family);
uint64_t elementwise(const KernelFamily& family);
uint64_t gelu(const KernelFamily& family);
uint64_t retention(const KernelFamily& family);

// attention_equality.cpp
uint64_t kv_rows(const KernelFamily& family);
uint64_t attention(const KernelFamily& family);
uint64_t attention_together(const KernelFamily& family);
uint64_t largest_attention(const KernelFamily& family);

// training_equality.cpp
uint64_t training_forward(const KernelFamily& family);
uint64_t training_backward(const KernelFamily& family);
uint64_t largest_gradients(const KernelFamily& family);
uint64_t row_kernels(const KernelFamily& family);

// overriding_families.cpp
extern const KernelFamily kOverridingFamily, kTrainingFamily;

}  // namespace yocobit::test
