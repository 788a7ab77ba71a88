// The reference kernels: plain C++ without intrinsics, built and tested on every CPU.

#include "kernels/family.h"

#include "kernels/generic/kernels-inl.h"
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
    .kernels = with_generic_kernels({
        .ternary_gemm = ternary_gemm,
        .sign_gemm = sign_gemm,
        .int8_gemm = int8_gemm,
        .int4_gemm = int4_gemm,
        .group_scaled_gemm = group_scaled_gemm,
        .attend = attend<CodeDots>,
    }),
    .training =
        {
            .quantize_rows = quantize_rows,
            .pack = pack,
            .project = project,
            .pack_transposed = pack_transposed,
            .input_gradient = input_gradient,
            .weight_gradient = weight_gradient,
        },
    .rows = kGenericRowKernels,
    .probes = {.read = read, .multiply_add = &kMultiplyAddLoop},
};

}  // namespace scalar
}  // namespace yocobit
