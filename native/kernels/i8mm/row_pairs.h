// Operands of smmla, which multiplies two rows of eight int8 by two columns of eight.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "kernels/formats.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// Eight bytes of each of two rows of a block.
YOCOBIT_INLINE uint8x16_t load_row_pair(const uint8_t* codes) {
  return vcombine_u8(vld1_u8(codes), vld1_u8(codes + kBlockBytes));
}

// Of eight int16 activations the high parts, then the low ones; see Parts.
YOCOBIT_INLINE int8x16_t split_eight(const int16_t* p) {
  const int16x8_t x = vld1q_s16(p), low = vandq_s16(x, vdupq_n_s16(kPartWeight - 1));
  return vuzp1q_s8(vreinterpretq_s8_s16(vshrq_n_s16(x, 7)), vreinterpretq_s8_s16(low));
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
