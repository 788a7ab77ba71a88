// Kernels for 64-bit ARM by the int8 matrix multiply-add of ARMv8.6 (smmla, usmmla). The others are
// inherited.

#include "kernels/family.h"

#include "kernels/generic/attention-inl.h"
#include "kernels/i8mm/head_gemm.h"
#include "kernels/i8mm/pair_parts.h"
#include "kernels/i8mm/panel_pairs.h"
#include "kernels/i8mm/probes.h"
#include "kernels/neon/code_dots.h"
#include "kernels/neon/cpu_features.h"
#include "kernels/neon/low_bit_gemm.h"

namespace yocobit {

namespace neon {
extern const KernelFamily kFamily;
}

namespace i8mm {
namespace {

bool is_supported() { return has_i8mm(); }

}  // namespace

extern const KernelFamily kFamily;

constinit const KernelFamily kFamily = {
    .name = YOCOBIT_QUOTE(YOCOBIT_TARGET),
    .base = &neon::kFamily,
    .is_supported = is_supported,
    .is_emulated = YOCOBIT_IS_EMULATED,
    .kernels =
        {
            .ternary_gemm = low_bit_gemm<Ternary, PanelPairs, false>,
            .sign_gemm = low_bit_gemm<Sign, PanelPairs, true>,
            .int8_gemm = int8_gemm,
            .int4_gemm = int4_gemm<Int4PairDots>,
            .attend = attend<CodeDots<PairParts>>,
        },
    .probes = {.multiply_add = &kMultiplyAddLoop},
};

}  // namespace i8mm
}  // namespace yocobit
