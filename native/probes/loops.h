// Microbenchmark loops that a kernel family provides: they measure limits of the CPU, not the rates
// of the engine's kernels.
#pragma once

#include <cstddef>
#include <cstdint>

namespace yocobit {

constexpr size_t kReadStep = 256;  // bytes of a stream that are read together

// Read n_streams equal parts of data in parallel, each with a prefetch that many bytes ahead unless
// that is 0. Up to n_streams * kReadStep bytes at the end of data are left out.
//   data  32-byte aligned
using ReadLoop = uint64_t (*)(const uint8_t* data, size_t size, int n_streams, size_t ahead);

// int8 multiply-adds from registers into registers, as many at a time as the CPU overlaps.
struct MultiplyAddLoop {
  const char* instruction;
  int64_t per_round;
  uint64_t (*run)(int64_t n_rounds);
};

struct ProbeLoops {
  ReadLoop read;
  const MultiplyAddLoop* multiply_add;
};

}  // namespace yocobit
