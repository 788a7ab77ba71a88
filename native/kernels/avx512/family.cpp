// Kernels for x86 with AVX-512 (F, BW, DQ, VL) and VNNI.

#include "kernels/family.h"

#include "kernels/avx512/code_dots.h"
#include "kernels/avx512/group_scaled.h"
#include "kernels/avx512/head_gemm.h"
#include "kernels/avx512/low_bit_gemm.h"
#include "kernels/avx512/probes.h"
#include "kernels/avx512/vnni_rate.h"
#include "kernels/generic/attention-inl.h"
#include "kernels/generic/dense_gemm-inl.h"
#include "kernels/generic/elementwise-inl.h"
#include "kernels/generic/input_gradient-inl.h"
#include "kernels/generic/quantize-inl.h"
#include "kernels/generic/retention-inl.h"
#include "kernels/generic/row_kernels-inl.h"
#include "kernels/generic/training_forward-inl.h"
#include "kernels/generic/weight_gradient-inl.h"

namespace yocobit {

namespace avx2 {
extern const KernelFamily kFamily;
}

namespace avx512 {
namespace {

bool is_supported() {
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl") ||
      !__builtin_cpu_supports("avx512vnni")) {
    return false;
  }
  static const bool is_full_rate = measure_vnni_rate();  // also called for families based on this
  is_vnni_at_full_rate = is_full_rate;
  return true;
}

}  // namespace

extern const KernelFamily kFamily;

constinit const KernelFamily kFamily = {
    .name = YOCOBIT_QUOTE(YOCOBIT_TARGET),
    .base = &avx2::kFamily,
    .is_supported = is_supported,
    .is_emulated = YOCOBIT_IS_EMULATED,
    .kernels =
        {
            .ternary_gemm = ternary_gemm,
            .sign_gemm = sign_gemm,
            .int8_gemm = int8_gemm,
            .int4_gemm = int4_gemm,
            .group_scaled_gemm = multiply_group_scaled,
            .dense_gemm = dense_gemm,
            .quantize_int8_row = quantize_int8_row,
            .quantize_int16_row = quantize_int16_row,
            .quantize_grouped_row = quantize_grouped_row,
            .rms_norm = rms_norm,
            .silu_multiply = silu_multiply,
            .gelu_multiply = gelu_multiply,
            .relu2_multiply = relu2_multiply,
            .sign = sign,
            .exponentials = exponentials,
            .rope_interleaved = rope_interleaved,
            .rope_half = rope_half,
            .retain = retain,
            .store = store_head,
            .load = load_any_head,
            .attend = attend<CodeDots>,
            .combine = combine,
            .normalize = normalize,
            .add = add,
            .add_scaled = add_scaled,
        },
    .training =
        {
            .quantize_rows = quantize_rows,
            .pack = pack,
            .project = project,
            .pack_transposed = pack_transposed,
            .input_gradient = input_gradient,
            .weight_gradient = weight_gradient,
        },
    .rows =
        {
            .norm = norm,
            .norm_gradient = norm_gradient,
            .gate = gate,
            .gate_gradient = gate_gradient,
        },
    .probes = {.read = nullptr, .multiply_add = &kMultiplyAddLoop},
};

}  // namespace avx512
}  // namespace yocobit
