// The kernels of the engine that have a generic body, as entries of a family's record.
#pragma once

#include "kernels/generic/attention-inl.h"
#include "kernels/generic/dense_gemm-inl.h"
#include "kernels/generic/elementwise-inl.h"
#include "kernels/generic/quantize-inl.h"
#include "kernels/generic/retention-inl.h"
#include "kernels/kernels.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// A family's own kernels, completed by the generic ones.
constexpr Kernels with_generic_kernels(Kernels kernels) {
  kernels.dense_gemm = dense_gemm;
  kernels.quantize_int8_row = quantize_int8_row;
  kernels.quantize_int16_row = quantize_int16_row;
  kernels.quantize_grouped_row = quantize_grouped_row;
  kernels.rms_norm = rms_norm;
  kernels.silu_multiply = silu_multiply;
  kernels.gelu_multiply = gelu_multiply;
  kernels.relu2_multiply = relu2_multiply;
  kernels.sign = sign;
  kernels.exponentials = exponentials;
  kernels.rope_interleaved = rope_interleaved;
  kernels.rope_half = rope_half;
  kernels.retain = retain;
  kernels.store = store_head;
  kernels.load = load_any_head;
  kernels.combine = combine;
  kernels.normalize = normalize;
  kernels.add = add;
  kernels.add_scaled = add_scaled;
  return kernels;
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
