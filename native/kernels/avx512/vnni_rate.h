// Whether the CPU multiply-adds 512-bit vectors as fast as 256-bit ones. Some execute a 512-bit
// instruction in two halves, and have half the rate; no CPUID bit says so.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <chrono>

#include "simd/target.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// Set by is_supported(). It decides between kernels that return the same bits.
bool is_vnni_at_full_rate = false;

constexpr int kRateRounds = 200, kRateSums = 12;  // 12 in flight cover the latency

inline void run_512() {
  __m512i sums[kRateSums] = {}, codes = _mm512_set1_epi8(1);
  for (int round = 0; round < kRateRounds; ++round) {
#pragma GCC unroll 12
    for (__m512i& sum : sums) asm volatile("vpdpbusd %1, %1, %0" : "+v"(sum) : "v"(codes));
  }
}

inline void run_256() {
  __m256i sums[kRateSums] = {}, codes = _mm256_set1_epi8(1);
  for (int round = 0; round < kRateRounds; ++round) {
#pragma GCC unroll 12
    for (__m256i& sum : sums) asm volatile("vpdpbusd %1, %1, %0" : "+v"(sum) : "v"(codes));
  }
}

// The best of some microseconds each, in turn, so that both see the same clock.
inline bool measure_vnni_rate() {
  using Clock = std::chrono::steady_clock;
  Clock::duration best_512 = Clock::duration::max(), best_256 = Clock::duration::max();
  const auto time = [](auto run, Clock::duration& best) {
    const Clock::time_point begin = Clock::now();
    run();
    best = std::min(best, Clock::now() - begin);
  };
  for (int i = 0; i < 64; ++i) {
    time(run_512, best_512);
    time(run_256, best_256);
  }
  // 1 at full rate, 2 at half.
  return 2 * best_512 < 3 * best_256;
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
