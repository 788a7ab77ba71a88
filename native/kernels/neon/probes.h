// Microbenchmark loop with sdot, the multiply-add of the GEMMs.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "probes/loops.h"
#include "simd/target.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

constexpr int kProbeSums = 16;  // cover the latency on four pipes

uint64_t probe_multiply_add(int64_t n_rounds) {
  int8x16_t codes = vdupq_n_s8(1), x = vdupq_n_s8(3);
  int32x4_t sums[kProbeSums];
  for (int32x4_t& sum : sums) sum = vdupq_n_s32(0);
  for (int64_t round = 0; round < n_rounds; ++round) {
#pragma GCC unroll 16
    for (int32x4_t& sum : sums) {
      asm volatile("" : "+w"(codes));  // another product each time, as far as the compiler knows
      sum = vdotq_s32(sum, codes, x);
    }
  }
  for (const int32x4_t& sum : sums) sums[0] = vorrq_s32(sums[0], sum);
  return vaddvq_u32(vreinterpretq_u32_s32(sums[0]));
}

const MultiplyAddLoop kMultiplyAddLoop = {
    .instruction = "NEON sdot", .per_round = kProbeSums * 16, .run = probe_multiply_add};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
