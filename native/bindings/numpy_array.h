// New NumPy arrays for what the engine returns.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <vector>

namespace yocobit {

using Floats = nanobind::ndarray<nanobind::numpy, float>;

// An array of the given shape, of zeros, filled by the caller.
inline Floats new_array(const std::vector<size_t>& shape) {
  size_t n = 1;
  for (const size_t length : shape) n *= length;
  float* data = new float[n]();
  nanobind::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
  return Floats(data, shape.size(), shape.data(), owner);
}

}  // namespace yocobit
