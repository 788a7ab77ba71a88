// Products of attention (neon/code_dots.h) by usmmla: two positions or columns by the two parts of
// eight factors.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "kernels/generic/attention_tiles-inl.h"
#include "kernels/i8mm/row_pairs.h"
#include "kernels/neon/dots.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

struct PairParts {
  template <int kSize>
  struct Factors : Codes<kSize> {
    alignas(16) int8_t parts[kSize / 8][16];

    void split(int n) {
      for (int i = 0; i < n; i += 8) vst1q_s8(parts[i / 8], split_eight(this->codes + i));
    }
  };
  using Operand = int8x16_t;

  template <int kSize>
  YOCOBIT_INLINE static Operand load(const Factors<kSize>& factors, int64_t k) {
    return vld1q_s8(factors.parts[k / 8]);
  }
  static constexpr int kInt8Offset = 128;
  template <FloatType>
  YOCOBIT_INLINE static uint32x4_t bytes(uint8x16_t codes) {
    return vreinterpretq_u32_u8(codes);
  }
  YOCOBIT_INLINE static void multiply_add(int32x4_t (&sums)[2], uint32x4_t first, uint32x4_t second,
                                          const Operand& factors) {
    const uint8x16_t low = vreinterpretq_u8_u32(vzip1q_u32(first, second));
    const uint8x16_t high = vreinterpretq_u8_u32(vzip2q_u32(first, second));
    sums[0] = vusmmlaq_s32(sums[0], low, factors);
    sums[1] = vusmmlaq_s32(sums[1], high, factors);
  }
  YOCOBIT_INLINE static int32x4_t joined(const int32x4_t (&sums)[2]) {
    const int32x4_t high = vuzp1q_s32(sums[0], sums[1]);
    return YOCOBIT_TARGET::joined(high, vuzp2q_s32(sums[0], sums[1]));
  }
};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
