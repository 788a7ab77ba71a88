// Aligned memory that the system commits page by page.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace yocobit {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// Memory for n values of T, 64-byte aligned and not initialised: the system hands out large ones
// page by page, when they are first written.
template <typename T>
using Buffer = std::unique_ptr<T[], Free>;

template <typename T>
Buffer<T> make_buffer(size_t n) {
  const size_t bytes = (n * sizeof(T) + 63) / 64 * 64;
  void* memory = std::aligned_alloc(64, bytes ? bytes : 64);
  if (!memory) throw std::bad_alloc();
  return Buffer<T>(static_cast<T*>(memory));
}

inline int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

}  // namespace yocobit
