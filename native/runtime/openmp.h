// parallel_for on the threads of PyTorch's OpenMP runtime: they spin for milliseconds after each of
// its operations, and threads of our own would wait for a CPU.
//
// Python passes the runtime's entry points, since this library does not link it. Without them, and
// in a child process after fork(), threads are started for each call: some 30 us where a matmul
// takes 1000. The runtime would wait forever for its threads, which do not exist in the child.
#pragma once

#include <cstdint>
#include <thread>
#include <vector>

#include "runtime/fork.h"

namespace yocobit {

// What compilers emit for `#pragma omp parallel`: a stable interface of GCC's and LLVM's runtimes.
struct OpenMp {
  void (*parallel)(void (*body)(void*), void* data, unsigned n_threads, unsigned flags) = nullptr;
  int (*thread_num)() = nullptr;
  int (*num_threads)() = nullptr;
};

// Call task(begin, end) on contiguous parts of [0, n_items), one per thread; return when all are
// done. Tasks must not throw. The runtime may grant fewer threads.
template <typename Task>
void parallel_for(const OpenMp& openmp, int n_threads, int64_t n_items, const Task& task) {
  const auto run = [&](int64_t index, int64_t size) {
    const int64_t begin = n_items * index / size, end = n_items * (index + 1) / size;
    if (begin < end) task(begin, end);
  };
  if (n_threads > n_items) n_threads = static_cast<int>(n_items);
  if (n_threads <= 1) {
    run(0, 1);
  } else if (openmp.parallel && n_forks() == 0) {
    const struct {
      const OpenMp& openmp;
      const decltype(run)& call;
    } context = {openmp, run};
    using Context = decltype(context);
    openmp.parallel(
        [](void* data) {
          const auto& self = *static_cast<Context*>(data);
          self.call(self.openmp.thread_num(), self.openmp.num_threads());
        },
        const_cast<void*>(static_cast<const void*>(&context)), static_cast<unsigned>(n_threads), 0);
  } else {
    std::vector<std::jthread> threads;
    for (int i = 1; i < n_threads; ++i) threads.emplace_back([&, i] { run(i, n_threads); });
    run(0, n_threads);
  }
}

}  // namespace yocobit
