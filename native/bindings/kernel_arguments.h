// What Python functions of single kernels take: arrays, and kernels by name.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>
#include <string>

namespace yocobit {

template <typename T, int n>
using Array = nanobind::ndarray<T, nanobind::ndim<n>, nanobind::c_contig, nanobind::device::cpu>;

inline void require(bool holds, const char* rule) {
  if (!holds) throw std::invalid_argument(rule);
}

// The kernels of that name among those that this CPU supports, slowest first, then nullptr.
template <typename Table>
const Table& named(const Table* const* supported, const std::string& name) {
  for (; *supported; ++supported) {
    if (name == (*supported)->name) return **supported;
  }
  throw std::invalid_argument("kernels '" + name + "' are not supported by this CPU");
}

}  // namespace yocobit
