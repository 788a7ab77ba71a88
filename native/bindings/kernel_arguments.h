// Kernels by name.
#pragma once

#include <stdexcept>
#include <string>

#include "kernels/kernels.h"

namespace yocobit {

// The kernels of that name among those that this CPU supports, slowest first, then nullptr.
template <typename Table>
const Table& named(const Table* const* supported, const std::string& name) {
  for (; *supported; ++supported) {
    if (name == (*supported)->name) return **supported;
  }
  throw std::invalid_argument("kernels '" + name + "' are not supported by this CPU");
}

inline const Kernels& fastest_kernels() {
  const Kernels* const* kernels = supported_kernels();
  while (kernels[1]) ++kernels;
  return **kernels;
}

}  // namespace yocobit
