// Kernels::group_scaled_gemm of a family that defines it in a source file of its own.
#pragma once

#include <cstddef>

#include "kernels/formats.h"
#include "simd/target.h"

namespace yocobit::YOCOBIT_TARGET {

void multiply_group_scaled(const GroupScaledMatrix& w, const GroupedRows& x, int group_begin,
                           int group_end, float* y, ptrdiff_t y_stride);

}  // namespace yocobit::YOCOBIT_TARGET
