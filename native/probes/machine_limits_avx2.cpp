// Reading and multiplying as fast as AVX2 can. Compiled with -mavx2.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "probes/machine_limits.h"

namespace yocobit {
namespace {

constexpr int kVectors = kReadStep / 32;
constexpr int kSums = 8;

uint64_t any_bit(__m256i x) {
  return static_cast<uint64_t>(_mm256_extract_epi64(x, 0) | _mm256_extract_epi64(x, 1) |
                               _mm256_extract_epi64(x, 2) | _mm256_extract_epi64(x, 3));
}

// The pair of instructions that products of 2-bit codes are made of; their int16 sums may wrap.
uint64_t multiply_add(int64_t n_rounds) {
  __m256i sums[kSums], codes = _mm256_set1_epi8(1), x = _mm256_set1_epi8(3);
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  for (int64_t round = 0; round < n_rounds; ++round) {
    for (__m256i& sum : sums) {
      asm volatile("" : "+x"(codes));  // another product each time, as far as the compiler knows
      sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, x));
    }
  }
  __m256i all = sums[0];
  for (int i = 1; i < kSums; ++i) all = _mm256_or_si256(all, sums[i]);
  return any_bit(all);
}

}  // namespace

uint64_t read_avx2(const uint8_t* data, size_t size, int n_streams, size_t ahead) {
  const size_t part = size / n_streams / kReadStep * kReadStep;
  __m256i sums[kVectors];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  for (size_t at = 0; at < part; at += kReadStep) {
    for (int stream = 0; stream < n_streams; ++stream) {
      const uint8_t* from = data + stream * part + at;
      if (ahead) {
        for (size_t line = 0; line < kReadStep; line += 64) {
          _mm_prefetch(reinterpret_cast<const char*>(from + ahead + line), _MM_HINT_T0);
        }
      }
      for (int i = 0; i < kVectors; ++i) {
        const __m256i* vectors = reinterpret_cast<const __m256i*>(from);
        sums[i] = _mm256_or_si256(sums[i], _mm256_load_si256(vectors + i));
      }
    }
  }
  __m256i all = sums[0];
  for (int i = 1; i < kVectors; ++i) all = _mm256_or_si256(all, sums[i]);
  return any_bit(all);
}

const MultiplyAddLoop kMaddubsLoop = {
    .instruction = "AVX2 vpmaddubsw + vpaddw", .per_round = kSums * 32, .run = multiply_add};

}  // namespace yocobit
