// Timed passes of threads that run concurrently: for machine_limits.cpp and kernel_rates.cpp.
#pragma once

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "runtime/affinity.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace yocobit {

// A thread's own memory, in huge pages if the system grants them.
struct FreeOwn {
  void operator()(uint8_t* memory) const { std::free(memory); }
};
using OwnMemory = std::unique_ptr<uint8_t, FreeOwn>;

inline OwnMemory allocate_own(size_t size) {
  constexpr size_t kHugePage = size_t{2} << 20;
  const size_t rounded = (size + kHugePage - 1) / kHugePage * kHugePage;
  OwnMemory memory(static_cast<uint8_t*>(std::aligned_alloc(kHugePage, rounded)));
  if (!memory) throw std::bad_alloc();
#ifdef __linux__
  madvise(memory.get(), rounded, MADV_HUGEPAGE);
#endif
  return memory;
}

// Seconds of every pass. Each thread calls prepare(thread) once and then pass(thread, number)
// n_passes times, in step with the others. A pass lasts from the start of the first thread to
// the end of the last. prepare and pass must not throw.
template <typename Prepare, typename Pass>
std::vector<double> time_passes(const int* cpus, int n_threads, int n_passes,
                                const Prepare& prepare, const Pass& pass) {
  using Clock = std::chrono::steady_clock;
  std::vector<Clock::time_point> begins(n_threads), ends(n_threads);
  std::vector<double> seconds(n_passes);
  std::barrier<> barrier(n_threads);
  std::atomic<int> signal{0};  // 1: all threads were created; -1: one could not be
  const auto work = [&](int thread) {
    signal.wait(0);
    if (signal < 0) return;
    bind_to_cpu(cpus[thread]);
    prepare(thread);
    for (int number = 0; number < n_passes; ++number) {
      barrier.arrive_and_wait();
      begins[thread] = Clock::now();
      pass(thread, number);
      ends[thread] = Clock::now();
      barrier.arrive_and_wait();
      if (thread > 0) continue;
      const auto first = *std::min_element(begins.begin(), begins.end());
      const auto last = *std::max_element(ends.begin(), ends.end());
      seconds[number] = std::chrono::duration<double>(last - first).count();
    }
  };
  const auto release = [&](int value) {
    signal = value;
    signal.notify_all();
  };
  // Not the caller itself: its affinity stays as it is.
  std::vector<std::thread> threads;
  try {
    for (int i = 0; i < n_threads; ++i) threads.emplace_back(work, i);
  } catch (...) {
    release(-1);
    for (std::thread& thread : threads) thread.join();
    throw;
  }
  release(1);
  for (std::thread& thread : threads) thread.join();
  return seconds;
}

}  // namespace yocobit
