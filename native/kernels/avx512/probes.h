// Microbenchmark loop with AVX-512 VNNI.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "probes/loops.h"
#include "simd/target.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

constexpr int kProbeSums = 12;  // five cycles of latency times two a cycle are 10 in flight

uint64_t probe_multiply_add(int64_t n_rounds) {
  __m512i sums[kProbeSums], codes = _mm512_set1_epi8(1), x = _mm512_set1_epi8(3);
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  for (int64_t round = 0; round < n_rounds; ++round) {
    for (__m512i& sum : sums) {
      asm volatile("" : "+v"(codes));  // another product each time, as far as the compiler knows
      sum = _mm512_dpbusd_epi32(sum, codes, x);
    }
  }
  __m512i all = sums[0];
  for (int i = 1; i < kProbeSums; ++i) all = _mm512_or_si512(all, sums[i]);
  return static_cast<uint64_t>(_mm512_reduce_or_epi64(all));
}

const MultiplyAddLoop kMultiplyAddLoop = {
    .instruction = "AVX-512 vpdpbusd", .per_round = kProbeSums * 64, .run = probe_multiply_add};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
