// Kernels for 64-bit ARM with the dot products of ARMv8.2.

#include "kernels/family.h"

#include "kernels/generic/attention-inl.h"
#include "kernels/generic/dense_gemm-inl.h"
#include "kernels/generic/elementwise-inl.h"
#include "kernels/generic/input_gradient-inl.h"
#include "kernels/generic/quantize-inl.h"
#include "kernels/generic/retention-inl.h"
#include "kernels/generic/row_kernels-inl.h"
#include "kernels/generic/training_forward-inl.h"
#include "kernels/generic/weight_gradient-inl.h"
#include "kernels/neon/code_dots.h"
#include "kernels/neon/cpu_features.h"
#include "kernels/neon/group_scaled.h"
#include "kernels/neon/int4_gemm.h"
#include "kernels/neon/int8_gemm.h"
#include "kernels/neon/low_bit_gemm.h"
#include "kernels/neon/probes.h"

namespace yocobit {

namespace scalar {
extern const KernelFamily kFamily;
}

namespace neon {
namespace {

bool is_supported() { return has_dotprod(); }

}  // namespace

extern const KernelFamily kFamily;

constinit const KernelFamily kFamily = {
    .name = YOCOBIT_QUOTE(YOCOBIT_TARGET),
    .base = &scalar::kFamily,
    .is_supported = is_supported,
    .is_emulated = YOCOBIT_IS_EMULATED,
    .kernels =
        {
            .ternary_gemm = low_bit_gemm<Ternary, PanelDots, false>,
            .sign_gemm = low_bit_gemm<Sign, PanelDots, true>,
            .int8_gemm = int8_gemm,
            .int4_gemm = int4_gemm<Int4Dots>,
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
            .attend = attend<CodeDots<DotParts>>,
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

}  // namespace neon
}  // namespace yocobit
