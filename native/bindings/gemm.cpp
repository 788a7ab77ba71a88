// Single GEMMs as Python functions, for tests that compare every family with NumPy.
//
// Letters:  M output features   K input features   N tokens

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <cstring>
#include <vector>

#include "bindings/arrays.h"
#include "kernels/family.h"
#include "runtime/buffer.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace yocobit {
namespace {

// codes (groups, blocks, 8, 32), x (N, K) int8 -> (N, M) with all scales 1, or with those of rows.
Floats low_bit_gemm(const std::string& name, const Array<const uint8_t, 4>& codes, int m,
                    const Array<const int8_t, 2>& x, bool is_ternary,
                    const std::optional<Array<const float, 1>>& row_scales) {
  const Kernels& kernels = kernel_family(name).kernels;
  const int block = is_ternary ? kTernaryBlock : kSignBlock;
  const int N = x.shape(0), K = x.shape(1), n_blocks = codes.shape(1);
  require(codes.shape(2) == kRowsPerGroup && codes.shape(3) == kBlockBytes,
          "codes must be (groups, blocks, 8, 32)");
  require(m > 0 && static_cast<size_t>(m + 7) / 8 == codes.shape(0), "codes must hold M rows");
  require(!row_scales || row_scales->shape(0) == static_cast<size_t>(m),
          "row_scales must be one for each of M rows");
  require(K <= n_blocks * block, "x must not have more values than the codes have columns");
  const int stride = static_cast<int>(round_up(n_blocks * block, kSignBlock));
  Buffer<int8_t> padded = make_buffer<int8_t>(static_cast<size_t>(N) * stride);
  std::vector<float> scales(N, 1.0f);
  std::vector<int32_t> sums(N, 0);
  std::memset(padded.get(), 0, static_cast<size_t>(N) * stride);
  for (int n = 0; n < N; ++n) {
    std::memcpy(&padded[static_cast<size_t>(n) * stride], x.data() + static_cast<size_t>(n) * K, K);
    for (int k = 0; k < K; ++k) sums[n] += x.data()[static_cast<size_t>(n) * K + k];
  }
  const BitMatrix w = {.codes = codes.data(),
                       .m = m,
                       .n_blocks = n_blocks,
                       .scale = 1.0f,
                       .row_scales = row_scales ? row_scales->data() : nullptr};
  const Int8Rows rows = {.codes = padded.get(),
                         .scales = scales.data(),
                         .sums = sums.data(),
                         .n = N,
                         .stride = stride};
  Floats y = new_array({static_cast<size_t>(N), static_cast<size_t>(m)});
  const auto matmul = is_ternary ? kernels.ternary_gemm : kernels.sign_gemm;
  matmul(w, rows, 0, static_cast<int>(codes.shape(0)), y.data(), m);
  return y;
}

// values (M, K) as raw f32 or f16; x (N, K) -> (N, M).
template <typename T>
Floats dense_gemm(const std::string& name, const Array<const T, 2>& values,
                  const Array<const float, 2>& x) {
  const size_t M = values.shape(0), K = values.shape(1), N = x.shape(0);
  require(K % kLanes == 0 && x.shape(1) == K, "K must be a multiple of 8 and the same in both");
  const DenseMatrix w = {.values = values.data(),
                         .scales = nullptr,
                         .type = sizeof(T) == 4 ? FloatType::f32 : FloatType::f16,
                         .m = static_cast<int>(M),
                         .k = static_cast<int>(K)};
  Floats y = new_array({N, M});
  kernel_family(name).kernels.dense_gemm(w, x.data(), N, 0, M, y.data(), M);
  return y;
}

// x (N, K) int16 as rows with all scales 1, padded.
struct Int16Input {
  explicit Int16Input(const Array<const int16_t, 2>& x) : ones(x.shape(0), 1.0f) {
    const size_t N = x.shape(0), K = x.shape(1), stride = round_up(K, kInt4Block);
    codes = make_buffer<int16_t>(N * stride);
    std::memset(codes.get(), 0, N * stride * sizeof(int16_t));
    sums.resize(N * stride / kInt4Block);
    for (size_t n = 0; n < N; ++n) {
      std::memcpy(&codes[n * stride], x.data() + n * K, K * sizeof(int16_t));
      for (size_t k = 0; k < stride; ++k) {
        sums[(n * stride + k) / kInt4Block] += codes[n * stride + k];
      }
    }
    rows = {.codes = codes.get(),
            .sums = sums.data(),
            .scales = ones.data(),
            .n = static_cast<int>(N),
            .stride = static_cast<int>(stride)};
  }

  Buffer<int16_t> codes;
  std::vector<int32_t> sums;
  std::vector<float> ones;
  Int16Rows rows;
};

// values (M, K) int8, x (N, K) int16 -> (N, M) with all scales 1.
Floats int8_gemm(const std::string& name, const Array<const int8_t, 2>& values,
                 const Array<const int16_t, 2>& x) {
  const size_t M = values.shape(0), K = values.shape(1), N = x.shape(0);
  require(K % kLanes == 0 && x.shape(1) == K, "K must be a multiple of 8 and the same in both");
  const Int16Input input(x);
  const std::vector<float> ones(M, 1.0f);
  const DenseMatrix w = {.values = values.data(),
                         .scales = ones.data(),
                         .type = FloatType::i8,
                         .m = static_cast<int>(M),
                         .k = static_cast<int>(K)};
  Floats y = new_array({N, M});
  kernel_family(name).kernels.int8_gemm(w, input.rows, 0, static_cast<int>(M), y.data(), M);
  return y;
}

// codes (groups, blocks, 8, 32), scales (groups, blocks, 8) float16; x (N, K) int16 -> (N, M).
Floats int4_gemm(const std::string& name, const Array<const uint8_t, 4>& codes,
                 const Array<const uint16_t, 3>& scales, int m, const Array<const int16_t, 2>& x) {
  const size_t groups = codes.shape(0), blocks = codes.shape(1), N = x.shape(0);
  require(codes.shape(2) == kRowsPerGroup && codes.shape(3) == kBlockBytes,
          "codes must be (groups, blocks, 8, 32)");
  require(scales.shape(0) == groups && scales.shape(1) == blocks && scales.shape(2) == 8,
          "scales must be (groups, blocks, 8)");
  require(m > 0 && static_cast<size_t>(m + 7) / 8 == groups, "codes must hold M rows");
  const Int16Input input(x);
  require(static_cast<size_t>(input.rows.stride) == blocks * kInt4Block,
          "x must have as many values as the codes have columns");
  const Int4Matrix w = {
      .codes = codes.data(), .scales = scales.data(), .m = m, .n_blocks = static_cast<int>(blocks)};
  Floats y = new_array({N, static_cast<size_t>(m)});
  kernel_family(name).kernels.int4_gemm(w, input.rows, 0, static_cast<int>(groups), y.data(), m);
  return y;
}

// codes (groups, blocks, 8, 32) in the order of GroupScaledMatrix, scales (groups, n, 8) float16 or
// row_scales (M,); x (N, parts, K) int8, x_scales (N, K / 32) -> (N, M), 0 outside the groups.
Floats group_scaled_gemm(const std::string& name, const Array<const uint8_t, 4>& codes,
                         const std::optional<Array<const uint16_t, 3>>& scales,
                         const std::optional<Array<const float, 1>>& row_scales, int m, int bits,
                         int first, int step, const Array<const int8_t, 3>& x,
                         const Array<const float, 2>& x_scales, int group_begin, int group_end) {
  const Kernels& kernels = kernel_family(name).kernels;
  const size_t groups = codes.shape(0), blocks = codes.shape(1);
  const size_t N = x.shape(0), n_parts = x.shape(1), K = x.shape(2);
  require((bits == 2 && first == -1 && step == 1) || (bits == 1 && first == -1 && step == 2) ||
              (bits == 2 && first == -3 && step == 2),
          "bits, first and step must be 2, -1, 1; 1, -1, 2; or 2, -3, 2");
  require(blocks > 0 && codes.shape(2) == kRowsPerGroup && codes.shape(3) == kBlockBytes,
          "codes must be (groups, blocks, 8, 32) with at least one block");
  require(m > 0 && static_cast<size_t>(m + 7) / 8 == groups, "codes must hold M rows");
  const size_t columns = blocks * kBlockBytes * 8 / bits;
  require(scales.has_value() != row_scales.has_value(), "need scales or row_scales");
  require(!row_scales || row_scales->shape(0) == static_cast<size_t>(m),
          "row_scales must be one for each of M rows");
  require(!scales || (scales->shape(0) == groups && scales->shape(2) == kRowsPerGroup &&
                      (scales->shape(1) * 64 == columns || scales->shape(1) * 128 == columns)),
          "scales must be (groups, n, 8) for 64 or 128 columns each");
  require(n_parts == 1 || n_parts == 2, "x must have 1 or 2 parts");
  require(K % kSignBlock == 0 && K >= columns && K < columns + kSignBlock,
          "x must have as many values as the codes have columns, padded to 256");
  require(x_scales.shape(0) == N && x_scales.shape(1) * kActivationGroup == K,
          "x_scales must be (N, K / 32)");
  require(0 <= group_begin && group_begin <= group_end && static_cast<size_t>(group_end) <= groups,
          "need 0 <= group_begin <= group_end <= groups");
  Buffer<int8_t> aligned = make_buffer<int8_t>(x.size());
  std::memcpy(aligned.get(), x.data(), x.size());
  std::vector<int32_t> sums(x_scales.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t n = i / (n_parts * K), part = i / K % n_parts, k = i % K;
    const int32_t weight = part + 1 < n_parts ? kPartWeight : 1;
    sums[(n * K + k) / kActivationGroup] -= weight * aligned[i];
  }
  const GroupScaledMatrix w = {
      .codes = codes.data(),
      .scales = scales ? scales->data() : nullptr,
      .row_scales = row_scales ? row_scales->data() : nullptr,
      .m = m,
      .n_blocks = static_cast<int>(blocks),
      .bits = bits,
      .group_columns = scales ? static_cast<int>(columns / scales->shape(1)) : 0,
      .first = first,
      .step = step};
  const GroupedRows rows = {.codes = aligned.get(),
                            .scales = x_scales.data(),
                            .sums = sums.data(),
                            .n = static_cast<int>(N),
                            .stride = static_cast<int>(K),
                            .n_parts = static_cast<int>(n_parts)};
  Floats y = new_array({N, static_cast<size_t>(m)});
  kernels.group_scaled_gemm(w, rows, group_begin, group_end, y.data(), m);
  return y;
}

}  // namespace

void bind_gemms(nb::module_& m) {
  m.def("low_bit_gemm", &low_bit_gemm, "kernels"_a, "codes"_a, "m"_a, "x"_a, "is_ternary"_a,
        "row_scales"_a = nb::none(),
        "Return y (N, M) = x (N, K) int8 times ternary or sign weights.\n\n"
        "`codes` (groups, blocks, 8, 32) hold M rows; `row_scales` (M,) are 1 unless given.");
  m.def("int8_gemm", &int8_gemm, "kernels"_a, "values"_a, "x"_a,
        "Return y (N, M) = x (N, K) int16 times int8 values (M, K); all scales are 1.");
  m.def("int4_gemm", &int4_gemm, "kernels"_a, "codes"_a, "scales"_a, "m"_a, "x"_a,
        "Return y (N, M) = x (N, K) int16 times int4 weights.\n\n"
        "`codes` (groups, blocks, 8, 32) hold M rows, `scales` (groups, blocks, 8) float16 bits.");
  m.def("group_scaled_gemm", &group_scaled_gemm, "kernels"_a, "codes"_a, "scales"_a.none(),
        "row_scales"_a.none(), "m"_a, "bits"_a, "first"_a, "step"_a, "x"_a, "x_scales"_a,
        "group_begin"_a, "group_end"_a,
        "Return y (N, M) = grouped x times group-scaled weights (first + step * code) * scale.\n\n"
        "`codes` (groups, blocks, 8, 32) hold M rows in the order [8 units][8 rows][4 bytes],\n"
        "`scales` (groups, n, 8) float16 bits, or `row_scales` (M,); `x` (N, parts, K) int8 with\n"
        "`x_scales` (N, K / 32). Only rows of the groups are computed, others are 0.");
  m.def("dense_gemm", &dense_gemm<float>, "kernels"_a, "values"_a, "x"_a,
        "Return y (N, M) = x (N, K) times float32 values (M, K), or float16 as their bits.");
  m.def("dense_gemm", &dense_gemm<uint16_t>, "kernels"_a, "values"_a, "x"_a);
}

}  // namespace yocobit
