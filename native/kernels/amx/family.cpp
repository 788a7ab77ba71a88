// Kernels for x86 with AMX (tiles, int8), on top of AVX-512: GEMM for 16 tokens and more,
// attention for 8 queries and more over int8 and int4 caches, and training.
// With YOCOBIT_EMULATED they run over tiles in plain C++, on top of the scalar family.

#include "kernels/family.h"

#include "kernels/amx/attention.h"
#include "kernels/amx/base.h"
#include "kernels/amx/group_scaled.h"
#include "kernels/amx/head_gemm.h"
#include "kernels/amx/low_bit_gemm.h"
#include "kernels/amx/permission.h"
#include "kernels/amx/probes.h"
#include "kernels/amx/training.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

bool is_supported() {
  resolved_base = resolve(kBase);
  return has_tiles();
}

}  // namespace

extern const KernelFamily kFamily;

constinit const KernelFamily kFamily = {
    .name = YOCOBIT_QUOTE(YOCOBIT_TARGET),
    .base = &kBase,
    .is_supported = is_supported,
    .is_emulated = YOCOBIT_IS_EMULATED,
    .kernels =
        {
            .ternary_gemm = ternary_gemm,
            .sign_gemm = sign_gemm,
            .int8_gemm = int8_gemm,
            .int4_gemm = int4_gemm,
            .group_scaled_gemm = multiply_group_scaled,
            .attend = attend,
        },
    .training =
        {
            .project = project,
            .weight_gradient = weight_gradient,
        },
    .probes = {.multiply_add = &kMultiplyAddLoop},
};

}  // namespace yocobit::YOCOBIT_TARGET
