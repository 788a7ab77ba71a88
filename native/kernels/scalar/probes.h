// Microbenchmark loops as the compiler makes them for any CPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "probes/loops.h"
#include "simd/target.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

uint64_t read(const uint8_t* data, size_t size, int n_streams, size_t ahead) {
  constexpr size_t kWords = kReadStep / sizeof(uint64_t);
  const size_t part = size / n_streams / kReadStep * kReadStep;
  uint64_t sums[kWords] = {};
  for (size_t at = 0; at < part; at += kReadStep) {
    for (int stream = 0; stream < n_streams; ++stream) {
      const uint8_t* from = data + stream * part + at;
      if (ahead) {
        for (size_t line = 0; line < kReadStep; line += 64) __builtin_prefetch(from + ahead + line);
      }
      const uint64_t* words = reinterpret_cast<const uint64_t*>(from);
      for (size_t i = 0; i < kWords; ++i) sums[i] |= words[i];
    }
  }
  uint64_t all = 0;
  for (const uint64_t sum : sums) all |= sum;
  return all;
}

constexpr int kProbeSize = 4096;

uint64_t probe_multiply_add(int64_t n_rounds) {
  int8_t codes[kProbeSize], x[kProbeSize];
  std::memset(codes, 1, sizeof(codes));
  std::memset(x, 3, sizeof(x));
  int32_t sum = 0;
  for (int64_t round = 0; round < n_rounds; ++round) {
    asm volatile("" : : "r"(codes), "r"(x) : "memory");  // other values each time
    int32_t products = 0;
    for (int i = 0; i < kProbeSize; ++i) products += codes[i] * x[i];
    sum |= products;
  }
  return static_cast<uint64_t>(sum);
}

const MultiplyAddLoop kMultiplyAddLoop = {
    .instruction = "compiled loop", .per_round = kProbeSize, .run = probe_multiply_add};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
