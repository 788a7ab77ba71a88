#include "model/linear.h"

#include <algorithm>

namespace yocobit {

Activations Activations::rows(int begin, int end) const {
  Activations part = *this;
  part.values += static_cast<ptrdiff_t>(begin) * k;
  part.n = part.int8.n = part.int16.n = part.grouped.n = end - begin;
  if (int8.codes) {
    part.int8.codes += static_cast<ptrdiff_t>(begin) * int8.stride;
    part.int8.scales += begin;
    part.int8.sums += begin;
  }
  if (int16.codes) {
    part.int16.codes += static_cast<ptrdiff_t>(begin) * int16.stride;
    part.int16.scales += begin;
    part.int16.sums += static_cast<ptrdiff_t>(begin) * (int16.stride / kInt4Block);
  }
  if (grouped.codes) {
    const ptrdiff_t groups = ptrdiff_t{begin} * (grouped.stride / kActivationGroup);
    part.grouped.codes += ptrdiff_t{begin} * grouped.n_parts * grouped.stride;
    part.grouped.scales += groups;
    part.grouped.sums += groups;
  }
  return part;
}

void Linear::add_bias(const Kernels& kernels, int n, int group_begin, int group_end, float* y,
                      ptrdiff_t y_stride) const {
  const int begin = group_begin * kRowsPerGroup, end = std::min(group_end * kRowsPerGroup, m);
  for (int row = 0; row < n; ++row) {
    kernels.add(bias + begin, end - begin, y + row * y_stride + begin);
  }
}

Linear Linear::rows(int begin, int end) const {
  Linear part = *this;
  part.m = end - begin;
  const int64_t row_bytes =
      format->has_blocks() ? int64_t{n_blocks()} * kBlockBytes : int64_t{k} * format->bits / 8;
  part.codes = static_cast<const uint8_t*>(codes) + begin * row_bytes;
  if (format->scale == ScaleGranularity::row) {
    part.scales = static_cast<const float*>(scales) + begin;
  } else if (format->scale == ScaleGranularity::group) {
    const int64_t n_scales = int64_t{n_blocks()} * format->groups_per_block();
    part.scales = static_cast<const uint16_t*>(scales) + begin * n_scales;
  }
  if (bias) part.bias += begin;
  return part;
}

void Linear::load_row(const Kernels& kernels, int64_t index, float* x) const {
  if (format->has_blocks()) return load_interleaved_row(kernels, index, x);
  const int64_t row_size = int64_t{k} * format->bits / 8;
  kernels.load(static_cast<const uint8_t*>(codes) + index * row_size, scale_of(kernels, index, 0),
               k, format->row_type, x);
}

// Field f of byte b of a row's block is column b + f * kBlockBytes. The rows of a block are
// interleaved in units of unit_bytes.
void Linear::load_interleaved_row(const Kernels& kernels, int64_t index, float* x) const {
  const int bits = format->bits, mask = (1 << bits) - 1, unit = format->unit_bytes;
  const int64_t first_block = index / kRowsPerGroup * n_blocks(), lane = index % kRowsPerGroup;
  for (int block = 0; block < n_blocks(); ++block) {
    const uint8_t* bytes = static_cast<const uint8_t*>(codes) +
                           (first_block + block) * kRowsPerGroup * kBlockBytes + lane * unit;
    for (int field = 0; field < 8 / bits; ++field) {
      const int begin = block * format->block_columns + field * kBlockBytes;
      const int n = std::min(kBlockBytes, k - begin);
      if (n <= 0) return;
      const float scale = scale_of(kernels, index, begin);
      for (int byte = 0; byte < n; ++byte) {
        const uint8_t fields = bytes[byte / unit * unit * kRowsPerGroup + byte % unit];
        const int code = fields >> field * bits & mask;
        x[begin + byte] =
            static_cast<float>(format->codes.first + code * format->codes.step) * scale;
      }
    }
  }
}

float Linear::scale_of(const Kernels& kernels, int64_t row, int column) const {
  switch (format->scale) {
    case ScaleGranularity::none:
      break;
    case ScaleGranularity::tensor:
      return *static_cast<const float*>(scales);
    case ScaleGranularity::row:
      return static_cast<const float*>(scales)[row];
    case ScaleGranularity::group: {  // [ceil(M / 8)][groups of columns][8] of float16
      float of_rows[kRowsPerGroup];
      const int64_t n_scales = int64_t{n_blocks()} * format->groups_per_block();
      const int64_t group = column / format->group_columns;
      const int64_t first = (row / kRowsPerGroup * n_scales + group) * kRowsPerGroup;
      kernels.load(static_cast<const uint16_t*>(scales) + first, 1.0f, kRowsPerGroup,
                   FloatType::f16, of_rows);
      return of_rows[row % kRowsPerGroup];
    }
  }
  return 1.0f;
}

}  // namespace yocobit
