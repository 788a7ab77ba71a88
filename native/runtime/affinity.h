// Which CPUs threads run on: what the process may use, binding, and when a worker of a pool
// migrates.
#pragma once

#include <algorithm>
#include <chrono>
#include <thread>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace yocobit {

// The CPUs that this process may use.
inline int available_cpus() {
#if defined(__linux__)
  cpu_set_t cpus;
  if (sched_getaffinity(0, sizeof(cpus), &cpus) == 0) return CPU_COUNT(&cpus);
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// The one that the calling thread runs on; -1 if the system does not say.
inline int current_cpu() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

// Bind the calling thread to a CPU; where the system refuses, it runs anywhere.
inline void bind_to_cpu(int cpu) {
#if defined(__linux__)
  cpu_set_t only;
  CPU_ZERO(&only);
  CPU_SET(cpu, &only);
  pthread_setaffinity_np(pthread_self(), sizeof(only), &only);
#else
  static_cast<void>(cpu);
#endif
}

// Migrate the calling thread off a CPU, to any other that it may use; false if there is none.
inline bool leave_cpu(int cpu) {
#if defined(__linux__)
  cpu_set_t all, others;
  if (cpu < 0 || sched_getaffinity(0, sizeof(all), &all) != 0) return false;
  others = all;
  CPU_CLR(cpu, &others);
  if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof(others), &others) != 0) return false;
  sched_setaffinity(0, sizeof(all), &all);
  return true;
#else
  static_cast<void>(cpu);
  return false;
#endif
}

// When a worker migrates that wakes up on the CPU where its caller spins: at once, since a system
// may leave both there for some 30 ms. On a busy machine the worker may wake there because the
// other CPUs are taken, so migrating helps now and then at most: it backs off exponentially.
class WakeMigration {
 public:
  using Clock = std::chrono::steady_clock;

  // After a wake-up; true if the worker migrated.
  bool on_wake(int caller_cpu, bool is_busy, Clock::time_point now) {
    if (caller_cpu < 0 || current_cpu() != caller_cpu) return false;
    if (is_busy && !is_backoff_over(now)) return false;
    return leave_cpu(caller_cpu);
  }

 private:
  static constexpr Clock::duration kMinBackoff = std::chrono::milliseconds(5);
  static constexpr Clock::duration kMaxBackoff = std::chrono::milliseconds(640);

  bool is_backoff_over(Clock::time_point now) {
    if (now - last_ < backoff_) return false;
    backoff_ = now - last_ < 10 * backoff_ ? std::min(2 * backoff_, kMaxBackoff) : kMinBackoff;
    last_ = now;
    return true;
  }

  Clock::time_point last_;
  Clock::duration backoff_ = kMinBackoff;
};

}  // namespace yocobit
