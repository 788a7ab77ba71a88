// Timing what threads do side by side, pass after pass: for machine_limits.cpp and
// kernel_rates.cpp.
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

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
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

inline void stay_on(int cpu) {
#ifdef __linux__
  cpu_set_t only;
  CPU_ZERO(&only);
  CPU_SET(cpu, &only);
  pthread_setaffinity_np(pthread_self(), sizeof(only), &only);  // where it fails, go on anywhere
#else
  static_cast<void>(cpu);
#endif
}

// Seconds of every pass. Each thread calls prepare(thread) once and then pass(thread, number)
// n_passes times, together with the others. A pass lasts from when the first thread begins it
// until the last has done it. prepare and pass must not throw.
template <typename Prepare, typename Pass>
std::vector<double> time_passes(const int* cpus, int n_threads, int n_passes,
                                const Prepare& prepare, const Pass& pass) {
  using Clock = std::chrono::steady_clock;
  std::vector<Clock::time_point> begins(n_threads), ends(n_threads);
  std::vector<double> seconds(n_passes);
  std::barrier<> meeting(n_threads);
  std::atomic<int> signal{0};  // 1: all threads are there; -1: one could not be made
  const auto work = [&](int thread) {
    signal.wait(0);
    if (signal < 0) return;
    stay_on(cpus[thread]);
    prepare(thread);
    for (int number = 0; number < n_passes; ++number) {
      meeting.arrive_and_wait();
      begins[thread] = Clock::now();
      pass(thread, number);
      ends[thread] = Clock::now();
      meeting.arrive_and_wait();
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
  // Not the caller itself: its own choice of CPUs stays as it is.
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
