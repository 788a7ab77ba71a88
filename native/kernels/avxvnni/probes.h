// Microbenchmark loop with AVX-VNNI.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/avx2/probes.h"
#include "probes/loops.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

constexpr int kVnniSums = 12;  // five cycles of latency times two a cycle are 10 in flight

uint64_t probe_vnni(int64_t n_rounds) {
  __m256i sums[kVnniSums] = {}, codes = _mm256_set1_epi8(1), x = _mm256_set1_epi8(3), all = {};
  for (int64_t round = 0; round < n_rounds; ++round) {
    asm volatile("" : "+x"(codes));  // other products each time, as far as the compiler knows
#pragma GCC unroll 12
    for (__m256i& sum : sums) sum = dot_bytes(sum, codes, x);
  }
  for (const __m256i& sum : sums) all = _mm256_or_si256(all, sum);
  return any_bit(all);
}

const MultiplyAddLoop kVnniLoop = {
    .instruction = "AVX-VNNI vpdpbusd", .per_round = kVnniSums * 32, .run = probe_vnni};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
