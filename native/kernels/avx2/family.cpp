// Kernels for x86 with AVX2, FMA and F16C.

#include "kernels/family.h"

#include "kernels/avx2/code_dots.h"
#include "kernels/avx2/group_scaled.h"
#include "kernels/avx2/head_gemm.h"
#include "kernels/avx2/low_bit_gemm.h"
#include "kernels/avx2/probes.h"
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

namespace scalar {
extern const KernelFamily kFamily;
}

namespace avx2 {
namespace {

bool is_supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

}  // namespace

extern const KernelFamily kFamily;

constinit const KernelFamily kFamily = {
    .name = YOCOBIT_QUOTE(YOCOBIT_TARGET),
    .base = &scalar::kFamily,
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
    .probes = {.read = read, .multiply_add = &kMultiplyAddLoop},
};

}  // namespace avx2
}  // namespace yocobit
