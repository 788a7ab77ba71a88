// Families of tests only: one that overrides a single kernel and inherits the rest, and one on top
// of it that overrides the training kernels. Both compile the generic bodies over simd/scalar.h, so
// that these are tested on every CPU.

#include "kernel_equality.h"
#include "kernels/generic/input_gradient-inl.h"
#include "kernels/generic/lut_gemm-inl.h"
#include "kernels/generic/training_forward-inl.h"
#include "kernels/generic/weight_gradient-inl.h"

namespace yocobit {

namespace scalar {
extern const KernelFamily kFamily;

namespace {

void lut_ternary_gemm(const BitMatrix& w, const Int8Rows& x, int group_begin, int group_end,
                      float* y, ptrdiff_t y_stride) {
  for (int token = 0; token < x.n; token += kTokenBlock) {
    const int n = x.n - token < kTokenBlock ? x.n - token : kTokenBlock;
    lut_gemm<Ternary, I16Sums<kTokenBlock>>(w, x, token, n, group_begin, group_end, y, y_stride);
  }
}

bool is_supported() { return true; }

}  // namespace
}  // namespace scalar

namespace test {

extern constinit const KernelFamily kOverridingFamily = {
    .name = "overriding",
    .base = &scalar::kFamily,
    .is_supported = scalar::is_supported,
    .kernels = {.ternary_gemm = scalar::lut_ternary_gemm},
};

extern constinit const KernelFamily kTrainingFamily = {
    .name = "overriding training",
    .base = &kOverridingFamily,
    .is_supported = scalar::is_supported,
    .training =
        {
            .quantize_rows = scalar::quantize_rows,
            .pack = scalar::pack,
            .project = scalar::project,
            .pack_transposed = scalar::pack_transposed,
            .input_gradient = scalar::input_gradient,
            .weight_gradient = scalar::weight_gradient,
        },
};

}  // namespace test
}  // namespace yocobit
