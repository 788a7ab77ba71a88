#include "model/weight_format.h"

#include <algorithm>
#include <stdexcept>

#include "model/linear.h"

namespace yocobit {
namespace {

BitMatrix bit_matrix(const Linear& w) {
  const auto* scales = static_cast<const float*>(w.scales);
  return {.codes = static_cast<const uint8_t*>(w.codes),
          .m = w.m,
          .n_blocks = w.n_blocks(),
          .scale = scales[0],
          .row_scales = w.format->scale == ScaleGranularity::row ? scales : nullptr};
}

DenseMatrix dense_matrix(const Linear& w) {
  return {.values = w.codes,
          .scales = static_cast<const float*>(w.scales),
          .type = w.format->row_type,
          .m = w.m,
          .k = w.k};
}

void multiply_ternary(const Kernels& kernels, const Linear& w, const Activations& x,
                      int group_begin, int group_end, float* y, ptrdiff_t y_stride) {
  kernels.ternary_gemm(bit_matrix(w), x.int8, group_begin, group_end, y, y_stride);
}

void multiply_sign(const Kernels& kernels, const Linear& w, const Activations& x, int group_begin,
                   int group_end, float* y, ptrdiff_t y_stride) {
  kernels.sign_gemm(bit_matrix(w), x.int8, group_begin, group_end, y, y_stride);
}

void multiply_int8(const Kernels& kernels, const Linear& w, const Activations& x, int group_begin,
                   int group_end, float* y, ptrdiff_t y_stride) {
  kernels.int8_gemm(dense_matrix(w), x.int16, group_begin * kRowsPerGroup,
                    std::min(group_end * kRowsPerGroup, w.m), y, y_stride);
}

void multiply_int4(const Kernels& kernels, const Linear& w, const Activations& x, int group_begin,
                   int group_end, float* y, ptrdiff_t y_stride) {
  const Int4Matrix matrix = {.codes = static_cast<const uint8_t*>(w.codes),
                             .scales = static_cast<const uint16_t*>(w.scales),
                             .m = w.m,
                             .n_blocks = w.n_blocks()};
  kernels.int4_gemm(matrix, x.int16, group_begin, group_end, y, y_stride);
}

void multiply_group_scaled(const Kernels& kernels, const Linear& w, const Activations& x,
                           int group_begin, int group_end, float* y, ptrdiff_t y_stride) {
  const bool has_groups = w.format->scale == ScaleGranularity::group;
  const GroupScaledMatrix matrix = {
      .codes = static_cast<const uint8_t*>(w.codes),
      .scales = has_groups ? static_cast<const uint16_t*>(w.scales) : nullptr,
      .row_scales = has_groups ? nullptr : static_cast<const float*>(w.scales),
      .m = w.m,
      .n_blocks = w.n_blocks(),
      .bits = w.format->bits,
      .group_columns = w.format->group_columns,
      .first = w.format->codes.first,
      .step = w.format->codes.step};
  kernels.group_scaled_gemm(matrix, x.grouped, group_begin, group_end, y, y_stride);
}

void multiply_dense(const Kernels& kernels, const Linear& w, const Activations& x, int group_begin,
                    int group_end, float* y, ptrdiff_t y_stride) {
  kernels.dense_gemm(dense_matrix(w), x.values, x.n, group_begin * kRowsPerGroup,
                     std::min(group_end * kRowsPerGroup, w.m), y, y_stride);
}

// A format of weights-only quantisation: the rows of a block are interleaved by four bytes.
constexpr WeightFormat group_scaled(const char* name, int bits, IntegerCodes codes,
                                    int group_columns, const ContentRule* rule) {
  return {.name = name,
          .dtype = "U8",
          .bits = bits,
          .codes = codes,
          .block_columns = bits == 1 ? kSignBlock : kTernaryBlock,
          .unit_bytes = 4,
          .scale = group_columns ? ScaleGranularity::group : ScaleGranularity::row,
          .group_columns = group_columns,
          .scale_dtype = group_columns ? "F16" : "F32",
          .activations = ActivationEncoding::int8_per_group,
          .row_type = {},
          .rule = rule,
          .scale_rule = group_columns ? &kNotNegativeF16 : &kPositiveF32,
          .matmul = multiply_group_scaled};
}

constexpr IntegerCodes kTernary = {.n = 3, .first = -1};
constexpr IntegerCodes kSign = {.n = 2, .first = -1, .step = 2};
constexpr IntegerCodes kInt2 = {.n = 4, .first = -1};

constexpr WeightFormat kFormats[] = {
    {.name = "ternary",
     .dtype = "U8",
     .bits = 2,
     .codes = kTernary,
     .block_columns = kTernaryBlock,
     .scale = ScaleGranularity::tensor,
     .scale_dtype = "F32",
     .activations = ActivationEncoding::int8_per_token,
     .row_type = {},
     .rule = &kTernaryCodes,
     .scale_rule = &kPositiveF32,
     .matmul = multiply_ternary},
    {.name = "ternary_row",
     .dtype = "U8",
     .bits = 2,
     .codes = kTernary,
     .block_columns = kTernaryBlock,
     .scale = ScaleGranularity::row,
     .scale_dtype = "F32",
     .activations = ActivationEncoding::int8_per_token,
     .row_type = {},
     .rule = &kTernaryCodes,
     .scale_rule = &kPositiveF32,
     .matmul = multiply_ternary},
    {.name = "sign",
     .dtype = "U8",
     .bits = 1,
     .codes = kSign,
     .block_columns = kSignBlock,
     .scale = ScaleGranularity::tensor,
     .scale_dtype = "F32",
     .activations = ActivationEncoding::int8_per_token,
     .row_type = {},
     .scale_rule = &kPositiveF32,
     .matmul = multiply_sign},
    group_scaled("ternary_g64", 2, kTernary, 64, &kTernaryCodes),
    group_scaled("ternary_g128", 2, kTernary, 128, &kTernaryCodes),
    group_scaled("ternary_row_a16", 2, kTernary, 0, &kTernaryCodes),
    group_scaled("sign_g128", 1, kSign, 128, nullptr),
    group_scaled("int2_g64", 2, kInt2, 64, nullptr),
    group_scaled("int2_g128", 2, kInt2, 128, nullptr),
    group_scaled("odd_g128", 2, {.n = 4, .first = -3, .step = 2}, 128, nullptr),
    {.name = "int8",
     .dtype = "I8",
     .bits = 8,
     .codes = {.n = 255, .first = -127},
     .block_columns = 1,
     .scale = ScaleGranularity::row,
     .scale_dtype = "F32",
     .activations = ActivationEncoding::int16_per_token,
     .row_type = FloatType::i8,
     .rule = &kInt8Codes,
     .scale_rule = &kPositiveF32,
     .matmul = multiply_int8},
    {.name = "int4",
     .dtype = "U8",
     .bits = 4,
     .codes = {.n = 16, .first = -8},
     .block_columns = kInt4Block,
     .scale = ScaleGranularity::group,
     .group_columns = kInt4Block,
     .scale_dtype = "F16",
     .activations = ActivationEncoding::int16_per_token,
     .row_type = {},
     .scale_rule = &kNotNegativeF16,
     .matmul = multiply_int4},
    {.name = "f16",
     .dtype = "F16",
     .bits = 16,
     .codes = {},
     .block_columns = 1,
     .scale = ScaleGranularity::none,
     .scale_dtype = "",
     .activations = ActivationEncoding::float32,
     .row_type = FloatType::f16,
     .rule = &kFiniteF16,
     .matmul = multiply_dense},
    {.name = "f32",
     .dtype = "F32",
     .bits = 32,
     .codes = {},
     .block_columns = 1,
     .scale = ScaleGranularity::none,
     .scale_dtype = "",
     .activations = ActivationEncoding::float32,
     .row_type = FloatType::f32,
     .rule = &kFiniteF32,
     .matmul = multiply_dense},
};

}  // namespace

std::span<const WeightFormat> weight_formats() { return kFormats; }

const WeightFormat& weight_format(const std::string& name) {
  for (const WeightFormat& format : kFormats) {
    if (name == format.name) return format;
  }
  std::string names;
  for (const WeightFormat& format : kFormats) names += std::string(format.name) + ", ";
  throw std::invalid_argument("weight format must be one of " + names + "but is '" + name + "'");
}

const char* name_of(ActivationEncoding encoding) {
  switch (encoding) {
    case ActivationEncoding::float32:
      return "float32";
    case ActivationEncoding::int8_per_token:
      return "int8_per_token";
    case ActivationEncoding::int16_per_token:
      return "int16_per_token";
    case ActivationEncoding::int8_per_group:
      return "int8_per_group";
  }
  return "";
}

const char* name_of(ScaleGranularity granularity) {
  switch (granularity) {
    case ScaleGranularity::none:
      return "none";
    case ScaleGranularity::tensor:
      return "tensor";
    case ScaleGranularity::row:
      return "row";
    case ScaleGranularity::group:
      return "group";
  }
  return "";
}

}  // namespace yocobit
