// GEMM with weights-only formats: Kernels::group_scaled_gemm with NEON.
#pragma once

#include <cstddef>

#include "kernels/formats.h"

namespace yocobit::neon {

void multiply_group_scaled(const GroupScaledMatrix& w, const GroupedRows& x, int group_begin,
                           int group_end, float* y, ptrdiff_t y_stride);

}  // namespace yocobit::neon
