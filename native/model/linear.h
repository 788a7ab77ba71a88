// A matrix of weights in its own format, and the inputs that it multiplies.
//
// Letters:  M output features   K input features   N tokens
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"
#include "model/weight_format.h"

namespace yocobit {

// N input rows: always in float32, and quantised where the weight format of a matrix that reads
// them needs it.
struct Activations {
  const float* values;  // [N][K]
  Int8Rows int8;        // codes [N][stride]
  Int16Rows int16;      // codes [N][stride]
  GroupedRows grouped;  // codes [N][parts][stride]
  int n;
  int k;

  Activations rows(int begin, int end) const;
};

// y = x W^T + bias, W (M, K).
struct Linear {
  const WeightFormat* format = nullptr;
  const void* codes = nullptr;   // [ceil(M / 8)][blocks][8][32], or [M][K]
  const void* scales = nullptr;  // [1], [M] or [ceil(M / 8)][groups of columns][8], or nullptr
  int m = 0;
  int k = 0;                    // multiple of 8
  const float* bias = nullptr;  // [M], or nullptr
  const float* norm = nullptr;  // [K], of an RMSNorm of x before it is encoded; or nullptr

  int n_groups() const { return (m + kRowsPerGroup - 1) / kRowsPerGroup; }
  int n_blocks() const { return (k + format->block_columns - 1) / format->block_columns; }

  // y[n][m] of all rows of x for the groups [group_begin, group_end) of eight output features.
  void apply(const Kernels& kernels, const Activations& x, int group_begin, int group_end, float* y,
             ptrdiff_t y_stride) const {
    format->matmul(kernels, *this, x, group_begin, group_end, y, y_stride);
    if (bias) add_bias(kernels, x.n, group_begin, group_end, y, y_stride);
  }

  // Rows [begin, end), of which begin is a multiple of 8, as a matrix.
  Linear rows(int begin, int end) const;

  // x [K] = row `index`.
  void load_row(const Kernels& kernels, int64_t index, float* x) const;

 private:
  void add_bias(const Kernels& kernels, int n, int group_begin, int group_end, float* y,
                ptrdiff_t y_stride) const;
  void load_interleaved_row(const Kernels& kernels, int64_t index, float* x) const;
  float scale_of(const Kernels& kernels, int64_t row, int column) const;
};

}  // namespace yocobit
