#include "model/linear.h"

#include "runtime/buffer.h"

namespace yocobit {

Activations Activations::rows(int begin, int end) const {
  Activations part = *this;
  part.values += static_cast<ptrdiff_t>(begin) * k;
  part.n = part.int8.n = part.int16.n = end - begin;
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
  return part;
}

void Linear::load_row(const Kernels& kernels, int64_t index, float* x) const {
  const int64_t row_size = int64_t{k} * format->bits / 8;
  const float scale =
      format->scale == ScaleGranularity::row ? static_cast<const float*>(scales)[index] : 1.0f;
  kernels.load(static_cast<const uint8_t*>(codes) + index * row_size, scale, k, format->row_type,
               x);
}

}  // namespace yocobit
