// The reference kernels: no cleverness, no intrinsics. Built and tested on every CPU.

#include "kernels/family.h"

#include "kernels/generic/attention-inl.h"
#include "kernels/generic/dense_gemm-inl.h"
#include "kernels/generic/elementwise-inl.h"
#include "kernels/generic/quantize-inl.h"
#include "kernels/generic/retention-inl.h"
#include "kernels/generic/row_kernels-inl.h"
#include "kernels/scalar/code_dots.h"
#include "kernels/scalar/gemm.h"
#include "kernels/scalar/probes.h"
#include "kernels/scalar/training.h"

namespace yocobit {

namespace scalar {
namespace {

bool is_supported() { return true; }

}  // namespace

extern const KernelFamily kFamily;

constinit const KernelFamily kFamily = {
    .name = YOCOBIT_QUOTE(YOCOBIT_TARGET),
    .base = nullptr,
    .is_supported = is_supported,
    .is_emulated = YOCOBIT_IS_EMULATED,
    .kernels =
        {
            .ternary_gemm = ternary_gemm,
            .sign_gemm = sign_gemm,
            .int8_gemm = int8_gemm,
            .int4_gemm = int4_gemm,
            .group_scaled_gemm = group_scaled_gemm,
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

}  // namespace scalar
}  // namespace yocobit
