// What the machine can do at most, measured: bytes read and int8 multiply-adds, per second.
//
//   machine_limits.cpp         threads, clocks, and compiled loops for any CPU
//   machine_limits_avx2.cpp    x86 with AVX2
//   machine_limits_avx512.cpp  x86 with AVX-512 VNNI
#pragma once

#include <cstddef>
#include <cstdint>

namespace yocobit {

constexpr size_t kReadStep = 256;  // bytes of a stream that are read together

// Read n_streams equal parts of data side by side, each with a prefetch that many bytes ahead
// unless that is 0. Up to n_streams * kReadStep bytes at the end of data are left out.
//   data  32-byte aligned
using ReadLoop = uint64_t (*)(const uint8_t* data, size_t size, int n_streams, size_t ahead);

// int8 multiply-adds from registers into registers, as many at a time as the CPU overlaps.
struct MultiplyAddLoop {
  const char* instruction;
  int64_t per_round;
  uint64_t (*run)(int64_t n_rounds);
};

uint64_t read_avx2(const uint8_t* data, size_t size, int n_streams, size_t ahead);
extern const MultiplyAddLoop kMaddubsLoop;  // machine_limits_avx2.cpp
extern const MultiplyAddLoop kVnniLoop;     // machine_limits_avx512.cpp

// The loops that this CPU can run, then nullptr.
const MultiplyAddLoop* const* supported_multiply_adds();

// Both are the best of n_passes passes that n_threads threads begin together, each on its own CPU
// of cpus [n_threads] where the system lets it choose. A thread reads its own `size` bytes again
// and again. They throw std::bad_alloc and std::system_error.
double read_bytes_per_s(const int* cpus, int n_threads, size_t size, int n_passes);
double multiply_adds_per_s(const MultiplyAddLoop& loop, const int* cpus, int n_threads,
                           int n_passes);

}  // namespace yocobit
