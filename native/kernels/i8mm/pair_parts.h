// Products of attention (neon/code_dots.h) by smmla: two positions or columns by the two parts of
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
  YOCOBIT_INLINE static void multiply_add(int32x4_t (&sums)[2], int8x16_t first, int8x16_t second,
                                          const Operand& factors) {
    const int32x4_t a = vreinterpretq_s32_s8(first), b = vreinterpretq_s32_s8(second);
    sums[0] = vmmlaq_s32(sums[0], vreinterpretq_s8_s32(vzip1q_s32(a, b)), factors);
    sums[1] = vmmlaq_s32(sums[1], vreinterpretq_s8_s32(vzip2q_s32(a, b)), factors);
  }
  YOCOBIT_INLINE static int32x4_t joined(const int32x4_t (&sums)[2]) {
    const int32x4_t high = vuzp1q_s32(sums[0], sums[1]);
    return YOCOBIT_TARGET::joined(high, vuzp2q_s32(sums[0], sums[1]));
  }
};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
