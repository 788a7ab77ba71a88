// Microbenchmark loops with AVX2: reads, and the multiply-add of GEMMs with low-bit weights.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "probes/loops.h"
#include "simd/target.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

constexpr int kReadVectors = kReadStep / 32;
constexpr int kProbeSums = 8;

inline uint64_t any_bit(__m256i x) {
  return static_cast<uint64_t>(_mm256_extract_epi64(x, 0) | _mm256_extract_epi64(x, 1) |
                               _mm256_extract_epi64(x, 2) | _mm256_extract_epi64(x, 3));
}

// The pair of instructions that products of 2-bit codes are made of; their int16 sums may wrap.
uint64_t probe_multiply_add(int64_t n_rounds) {
  __m256i sums[kProbeSums], codes = _mm256_set1_epi8(1), x = _mm256_set1_epi8(3);
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  for (int64_t round = 0; round < n_rounds; ++round) {
    for (__m256i& sum : sums) {
      asm volatile("" : "+x"(codes));  // another product each time, as far as the compiler knows
      sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, x));
    }
  }
  __m256i all = sums[0];
  for (int i = 1; i < kProbeSums; ++i) all = _mm256_or_si256(all, sums[i]);
  return any_bit(all);
}

uint64_t read(const uint8_t* data, size_t size, int n_streams, size_t ahead) {
  const size_t part = size / n_streams / kReadStep * kReadStep;
  __m256i sums[kReadVectors];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  for (size_t at = 0; at < part; at += kReadStep) {
    for (int stream = 0; stream < n_streams; ++stream) {
      const uint8_t* from = data + stream * part + at;
      if (ahead) {
        for (size_t line = 0; line < kReadStep; line += 64) {
          _mm_prefetch(reinterpret_cast<const char*>(from + ahead + line), _MM_HINT_T0);
        }
      }
      for (int i = 0; i < kReadVectors; ++i) {
        const __m256i* vectors = reinterpret_cast<const __m256i*>(from);
        sums[i] = _mm256_or_si256(sums[i], _mm256_load_si256(vectors + i));
      }
    }
  }
  __m256i all = sums[0];
  for (int i = 1; i < kReadVectors; ++i) all = _mm256_or_si256(all, sums[i]);
  return any_bit(all);
}

const MultiplyAddLoop kMultiplyAddLoop = {.instruction = "AVX2 vpmaddubsw + vpaddw",
                                          .per_round = kProbeSums * 32,
                                          .run = probe_multiply_add};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
