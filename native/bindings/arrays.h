// NumPy arrays: argument types of the bindings, and new arrays to return.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

namespace yocobit {

// A C-contiguous array of n dimensions in memory.
template <typename T, int n>
using Array = nanobind::ndarray<T, nanobind::ndim<n>, nanobind::c_contig, nanobind::device::cpu>;

using Floats = nanobind::ndarray<nanobind::numpy, float>;

// A new array of the given shape, of zeros.
inline Floats new_array(const std::vector<size_t>& shape) {
  size_t n = 1;
  for (const size_t length : shape) n *= length;
  float* data = new float[n]();
  nanobind::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
  return Floats(data, shape.size(), shape.data(), owner);
}

inline void require(bool holds, const char* rule) {
  if (!holds) throw std::invalid_argument(rule);
}

// Check that `out` has room for exactly `size` values.
template <typename Out>
void require_size(const Out& out, size_t size) {
  if (out.size() != size) {
    throw std::invalid_argument("out must have " + std::to_string(size) + " values but has " +
                                std::to_string(out.size()));
  }
}

}  // namespace yocobit
