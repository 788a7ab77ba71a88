// GEMM with weights-only formats: Kernels::group_scaled_gemm with AVX-512.
#pragma once

#include <cstddef>

#include "kernels/formats.h"

namespace yocobit::avx512 {

void multiply_group_scaled(const GroupScaledMatrix& w, const GroupedRows& x, int group_begin,
                           int group_end, float* y, ptrdiff_t y_stride);

}  // namespace yocobit::avx512
