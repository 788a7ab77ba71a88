// The closed set of weight formats and their activation encodings: one record each, the twin of
// src/yocobit/packing/formats.py; `_native.weight_formats()` exports it and a test holds both
// equal.
//
// A matrix (M, K) is a tensor of codes and one of scales, or of floats. Formats with blocks
// interleave eight rows in blocks of 32 bytes (docs/reference/packed-format.md); the others are
// [M][K].
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "kernels/kernels.h"
#include "model/tensor_contents.h"

namespace yocobit {

struct Activations;  // model/linear.h
struct Linear;

// How a matmul reads its input rows: float32; int8 codes and a scale per token; int16 codes (15
// bits) and a scale per token, with a sum for every 64 of them; or int8 codes and a scale per group
// of columns (int16 with ModelConfig::exact_activations).
enum class ActivationEncoding { float32, int8_per_token, int16_per_token, int8_per_group };

// A scale for the whole matrix, for each row, or for each group of columns of a row.
enum class ScaleGranularity { none, tensor, row, group };

// Code c stands for first + c * step; int8 stores these values themselves, floats have no codes.
struct IntegerCodes {
  int n = 0;
  int first = 0;
  int step = 1;
};

struct WeightFormat {
  const char* name;
  const char* dtype;             // of the tensor of codes or values: "U8", "I8", "F16" or "F32"
  int bits;                      // of a code or value
  IntegerCodes codes;            // what a code stands for, before the scale
  int block_columns;             // of 32 bytes of a row; 1: rows are contiguous
  int unit_bytes = kBlockBytes;  // of a row that are contiguous in a block
  ScaleGranularity scale;
  int group_columns = 0;    // of a scale, with ScaleGranularity::group; divides block_columns
  const char* scale_dtype;  // "" without scales
  ActivationEncoding activations;
  FloatType row_type;  // of contiguous rows

  const ContentRule* rule = nullptr;  // of codes or values; nullptr: every bit pattern is valid
  const ContentRule* scale_rule = nullptr;

  // y[n][m] of all rows of x, for the output features of groups [group_begin, group_end) of eight
  // that are below M. y [N][y_stride] must not overlap the inputs.
  void (*matmul)(const Kernels& kernels, const Linear& w, const Activations& x, int group_begin,
                 int group_end, float* y, ptrdiff_t y_stride);

  bool has_blocks() const { return block_columns > 1; }
  int groups_per_block() const { return block_columns / group_columns; }
};

std::span<const WeightFormat> weight_formats();

// The format of that name; std::invalid_argument if there is none.
const WeightFormat& weight_format(const std::string& name);

const char* name_of(ActivationEncoding encoding);
const char* name_of(ScaleGranularity granularity);

}  // namespace yocobit
