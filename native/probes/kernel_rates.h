// Memory rates of the engine's own kernels, which `yocobit plan` predicts with.
//
// Every rate is the median of n_passes passes that n threads start together, each on its own CPU of
// cpus [n], over its own `size` bytes repeatedly: a size that fits a cache gives the rate from
// there. machine_limits.h takes the best instead, since it measures limits. They throw
// std::bad_alloc and std::system_error.
//
// Letters:  M output features   K input features   N tokens   D head size
#pragma once

#include <cstddef>

#include "kernels/kernels.h"
#include "model/weight_format.h"

namespace yocobit {

struct Threads {
  const int* cpus;
  int n;
  int n_passes;
};

// Bytes per second of weights in matrices [M][K], each multiplied by N tokens. Scales of groups are
// read but not counted: they are at most a ninth of the bytes of a matrix.
double gemm_bytes_per_s(const Kernels& kernels, const WeightFormat& format, int n, int m, int k,
                        size_t size, const Threads& threads);

// Bytes a second of keys, values and their scales of one K/V head, attended to with n_queries.
double attention_bytes_per_s(const Kernels& kernels, FloatType type, int n_queries, int head_dim,
                             size_t size, const Threads& threads);

// Bytes a second of retention states [D][D], read and written, whatever n: each consumes n
// positions.
double retention_bytes_per_s(const Kernels& kernels, int n, int head_dim, size_t size,
                             const Threads& threads);

}  // namespace yocobit
