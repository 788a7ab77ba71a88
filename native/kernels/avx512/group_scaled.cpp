// Apart from family.cpp, so that its size does not change what GCC inlines in the other kernels.

#include "kernels/generic/group_scaled.h"

#include "kernels/avx512/row_lanes.h"
#include "kernels/generic/group_scaled_gemm-inl.h"

namespace yocobit::avx512 {

void multiply_group_scaled(const GroupScaledMatrix& w, const GroupedRows& x, int group_begin,
                           int group_end, float* y, ptrdiff_t y_stride) {
  group_scaled_gemm<RowLanes>(w, x, group_begin, group_end, y, y_stride);
}

}  // namespace yocobit::avx512
