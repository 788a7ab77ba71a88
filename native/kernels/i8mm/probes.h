// Microbenchmark loop with smmla, the multiply-add of the GEMMs.
#pragma once

#include <arm_neon.h>

#include "kernels/neon/probe_loop.h"
#include "probes/loops.h"
#include "simd/target.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

struct Smmla {
  YOCOBIT_INLINE static int32x4_t dot(int32x4_t sum, int8x16_t codes, int8x16_t x) {
    return vmmlaq_s32(sum, codes, x);
  }
};

const MultiplyAddLoop kMultiplyAddLoop = {
    .instruction = "NEON smmla", .per_round = kProbeSums * 32, .run = probe_multiply_add<Smmla>};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
