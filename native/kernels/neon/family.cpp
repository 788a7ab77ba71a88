// Kernels for 64-bit ARM with the dot products of ARMv8.2.

#include "kernels/family.h"

#include "kernels/generic/group_scaled.h"
#include "kernels/generic/kernels-inl.h"
#include "kernels/generic/row_kernels-inl.h"
#include "kernels/generic/training_kernels-inl.h"
#include "kernels/neon/code_dots.h"
#include "kernels/neon/cpu_features.h"
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
    .kernels = with_generic_kernels({
        .ternary_gemm = low_bit_gemm<Ternary, PanelDots, false>,
        .sign_gemm = low_bit_gemm<Sign, PanelDots, true>,
        .int8_gemm = int8_gemm<Int8Dots>,
        .int4_gemm = int4_gemm<Int4Dots>,
        .group_scaled_gemm = multiply_group_scaled,
        .attend = attend<CodeDots<DotParts>>,
    }),
    .training = kGenericTrainingKernels,
    .rows = kGenericRowKernels,
    .probes = {.multiply_add = &kMultiplyAddLoop},
};

}  // namespace neon
}  // namespace yocobit
