// The microbenchmark loop of NEON families, over a multiply-add of 16 bytes by 16 bytes.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "simd/target.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

constexpr int kProbeSums = 16;  // cover the latency on four pipes

// MultiplyAdd::dot(sum, codes, x) returns the new sum.
template <typename MultiplyAdd>
uint64_t probe_multiply_add(int64_t n_rounds) {
  int8x16_t codes = vdupq_n_s8(1), x = vdupq_n_s8(3);
  int32x4_t sums[kProbeSums];
  for (int32x4_t& sum : sums) sum = vdupq_n_s32(0);
  for (int64_t round = 0; round < n_rounds; ++round) {
#pragma GCC unroll 16
    for (int32x4_t& sum : sums) {
      asm volatile("" : "+w"(codes));  // another product each time, as far as the compiler knows
      sum = MultiplyAdd::dot(sum, codes, x);
    }
  }
  for (const int32x4_t& sum : sums) sums[0] = vorrq_s32(sums[0], sum);
  return vaddvq_u32(vreinterpretq_u32_s32(sums[0]));
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
