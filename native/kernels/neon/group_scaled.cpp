// Apart from family.cpp, so that its size does not change what the compiler inlines in the other
// kernels.

#include "kernels/generic/group_scaled.h"

#include "kernels/generic/group_scaled_gemm-inl.h"
#include "kernels/neon/row_lanes.h"

namespace yocobit::neon {

void multiply_group_scaled(const GroupScaledMatrix& w, const GroupedRows& x, int group_begin,
                           int group_end, float* y, ptrdiff_t y_stride) {
  group_scaled_gemm<RowLanes>(w, x, group_begin, group_end, y, y_stride);
}

}  // namespace yocobit::neon
