// Kernels for x86 with AVX-512 (F, BW, DQ, VL) and VNNI.

#include "kernels/family.h"

#include "kernels/avx512/code_dots.h"
#include "kernels/avx512/head_gemm.h"
#include "kernels/avx512/low_bit_gemm.h"
#include "kernels/avx512/probes.h"
#include "kernels/avx512/vnni_rate.h"
#include "kernels/generic/group_scaled.h"
#include "kernels/generic/kernels-inl.h"
#include "kernels/generic/row_kernels-inl.h"
#include "kernels/generic/training_kernels-inl.h"

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
    .kernels = with_generic_kernels({
        .ternary_gemm = low_bit_gemm<Ternary>,
        .sign_gemm = low_bit_gemm<Sign>,
        .int8_gemm = int8_gemm,
        .int4_gemm = int4_gemm,
        .group_scaled_gemm = multiply_group_scaled,
        .attend = attend<CodeDots>,
    }),
    .training = kGenericTrainingKernels,
    .rows = kGenericRowKernels,
    .probes = {.multiply_add = &kMultiplyAddLoop},
};

}  // namespace avx512
}  // namespace yocobit
