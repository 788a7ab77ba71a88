// Kernels for x86 with AVX2 and AVX-VNNI.

#include "kernels/family.h"

#include <cpuid.h>

#include "kernels/avx2/head_gemm.h"
#include "kernels/avxvnni/code_dots.h"
#include "kernels/avxvnni/low_bit_gemm.h"
#include "kernels/avxvnni/probes.h"
#include "kernels/avxvnni/row_lanes.h"
#include "kernels/generic/attention-inl.h"
#include "kernels/generic/group_scaled_gemm-inl.h"

namespace yocobit {

namespace avx2 {
extern const KernelFamily kFamily;
}

namespace YOCOBIT_TARGET {
namespace {

// That the system saves the registers is a condition of AVX2, the base.
bool is_supported() {
#if !defined(YOCOBIT_EMULATED)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & 1 << 4);
#elif defined(YOCOBIT_EVEX)
  return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#else
  return true;
#endif
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
            .ternary_gemm = low_bit_gemm<Ternary>,
            .sign_gemm = low_bit_gemm<Sign>,
            .int8_gemm = int8_gemm<Int8Dots>,
            .int4_gemm = int4_gemm,
            .group_scaled_gemm = group_scaled_gemm<VnniRowLanes>,
            .attend = attend<CodeDots>,
        },
    .probes = {.multiply_add = &kVnniLoop},
};

}  // namespace YOCOBIT_TARGET
}  // namespace yocobit
