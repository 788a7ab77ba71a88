// Vectors whose lanes are the rows of two groups; the contract is in generic/vnni_gemm-inl.h.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/avx512/vectors.h"
#include "kernels/generic/vnni_gemm-inl.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

struct VnniRows {
  using Vector = __m512i;
  static constexpr int kGroups = 2, kVectors = 2, kTokens = 8;

  YOCOBIT_INLINE static void transpose(const uint8_t* codes, size_t group_bytes, Vector* columns) {
    transpose_rows(codes, codes + group_bytes, columns);
  }
  YOCOBIT_INLINE static Vector dot(Vector sum, Vector codes, Vector x) {
    return dot_bytes(sum, codes, x);
  }

  // The lanes hold rows 0-3 of both groups, then rows 4-7 of both.
  template <typename Format>
  YOCOBIT_INLINE static void write(Vector sum, const BitMatrix& w, const Int8Rows& x, int row,
                                   int n, float* y) {
    const __m512i ordered = _mm512_shuffle_i64x2(sum, sum, _MM_SHUFFLE(3, 1, 2, 0));
    const __m512i product =
        _mm512_sub_epi32(_mm512_slli_epi32(ordered, Format::kShift), _mm512_set1_epi32(x.sums[n]));
    const __mmask16 rows = lanes_below(w.m - row);
    const __m512 scales =
        w.row_scales ? _mm512_maskz_loadu_ps(rows, w.row_scales + row) : _mm512_set1_ps(w.scale);
    _mm512_mask_storeu_ps(y + row, rows,
                          _mm512_mul_ps(_mm512_cvtepi32_ps(product),
                                        _mm512_mul_ps(_mm512_set1_ps(x.scales[n]), scales)));
  }
};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
