// Limits of the machine, measured: bytes read and int8 multiply-adds, per second. The loops are
// those of the kernel families (loops.h).
#pragma once

#include <cstddef>
#include <vector>

#include "probes/loops.h"

namespace yocobit {

// The loops that this CPU can run, slowest first.
std::vector<const MultiplyAddLoop*> supported_multiply_adds();

// Both are the best of n_passes passes that n_threads threads start together, each on its own CPU
// of cpus [n_threads] where the system allows it. A thread reads its own `size` bytes repeatedly.
// They throw std::bad_alloc and std::system_error.
double read_bytes_per_s(const int* cpus, int n_threads, size_t size, int n_passes);
double multiply_adds_per_s(const MultiplyAddLoop& loop, const int* cpus, int n_threads,
                           int n_passes);

}  // namespace yocobit
