// int8 weights by the two int8 parts of int16 activations, by sdot; the contract is in
// generic/int8_gemm-inl.h.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "kernels/generic/int8_gemm-inl.h"
#include "kernels/neon/dots.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

struct Int8Dots {
  // int32 budget: a lane adds 4 products of at most 128 * 128 for every 16 columns; 2^16 columns
  // reach 2^28.
  static constexpr int kColumnsPerWidening = 1 << 16, kSets = 1;
  using Weights = int8x16_t;
  using Inputs = Parts;
  struct Sums {
    int32x4_t high, low;
  };

  template <int n>
  YOCOBIT_INLINE static Weights weights(const int8_t* p) {
    return n == 16 ? vld1q_s8(p) : vcombine_s8(vld1_s8(p), vdup_n_s8(0));
  }
  YOCOBIT_INLINE static Inputs inputs(const int16_t* p) { return split(p); }
  YOCOBIT_INLINE static Sums zero() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }
  YOCOBIT_INLINE static Sums add(const Sums& sums, Weights weights, const Inputs& inputs) {
    return {vdotq_s32(sums.high, weights, inputs.high), vdotq_s32(sums.low, weights, inputs.low)};
  }
  static int64_t total(const Sums& sums) {
    return kPartWeight * vaddlvq_s32(sums.high) + vaddlvq_s32(sums.low);
  }
};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
