// Kernels for x86 with AVX2, FMA and F16C.

#include "kernels/family.h"

#include "kernels/avx2/code_dots.h"
#include "kernels/avx2/head_gemm.h"
#include "kernels/avx2/low_bit_gemm.h"
#include "kernels/avx2/probes.h"
#include "kernels/generic/group_scaled.h"
#include "kernels/generic/kernels-inl.h"
#include "kernels/generic/row_kernels-inl.h"
#include "kernels/generic/training_kernels-inl.h"

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
    .kernels = with_generic_kernels({
        .ternary_gemm = low_bit_gemm<Ternary>,
        .sign_gemm = low_bit_gemm<Sign>,
        .int8_gemm = int8_gemm<Int8Dots>,
        .int4_gemm = int4_gemm,
        .group_scaled_gemm = multiply_group_scaled,
        .attend = attend<CodeDots>,
    }),
    .training = kGenericTrainingKernels,
    .rows = kGenericRowKernels,
    .probes = {.read = read, .multiply_add = &kMultiplyAddLoop},
};

}  // namespace avx2
}  // namespace yocobit
