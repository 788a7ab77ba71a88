// A pool whose threads meet at a spinning barrier: work starts within a microsecond, and which
// thread computes an item never changes the item's result.
//
// A thread that waits makes no system call: it spins for as long as a decode loop may pause to
// draw a token. It yields where there are more threads than CPUs, or where another thread is late
// by more than its share of work explains; a worker that stays without work goes to sleep.
#pragma once

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
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

class ThreadPool {
 public:
  // Throws std::runtime_error if the system has fewer threads to give.
  explicit ThreadPool(int n_threads) : is_oversubscribed_(n_threads > available_cpus()) {
    try {
      for (int i = 1; i < n_threads; ++i) workers_.emplace_back([this, i] { work(i); });
    } catch (const std::system_error& error) {
      const int n = size();
      stop();
      throw std::runtime_error("threads must be at most " + std::to_string(n) + " here but are " +
                               std::to_string(n_threads) + " (" + error.what() + ")");
    }
  }

  ~ThreadPool() { stop(); }

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Call task(begin, end) on one contiguous share of [0, n_items) per thread; return when all are
  // done. One caller at a time. Tasks must not throw. Few items run on the caller alone.
  template <typename Task>
  void run(int64_t n_items, const Task& task) {
    if (workers_.empty() || n_items <= 1) {
      if (n_items > 0) task(int64_t{0}, n_items);
      return;
    }
    round_.context = &task;
    round_.call = [](const void* context, int64_t begin, int64_t end) {
      (*static_cast<const Task*>(context))(begin, end);
    };
    round_.n_items = n_items;
    round_.n_threads = size();
    begin_round();
    share(0);
    const uint32_t all = arrived_before_ += static_cast<uint32_t>(workers_.size());
    const auto is_done = [&] { return arrived_.load(std::memory_order_acquire) == all; };
    if (spin_until(is_done, kPatience)) return;
    while (!is_done()) std::this_thread::yield();
  }

 private:
  using Duration = std::chrono::steady_clock::duration;
  // Late beyond this, another thread lost its CPU to somebody, who may want ours.
  static constexpr Duration kPatience = std::chrono::microseconds(200);
  // Longer than it takes to draw a token between two steps; short enough to cost an idle engine
  // nothing that shows.
  static constexpr Duration kIdle = std::chrono::milliseconds(2);
  static constexpr int kSpinsPerLook = 64;  // at the clock
  static constexpr int kCacheLine = 64;

  // Written by the caller, read by workers: one cache line on its way from one to the other.
  struct alignas(kCacheLine) Round {
    std::atomic<uint32_t> number{0};  // 32 bits, so that waiting is a futex and no more
    int n_threads = 0;
    const void* context = nullptr;
    void (*call)(const void*, int64_t, int64_t) = nullptr;
    int64_t n_items = 0;
    bool is_last = false;
  };

  void begin_round() {
    // Before a worker sleeps it counts itself, then looks at the number; we write the number, then
    // look at the count. Both orders are sequentially consistent, so one of us sees the other.
    round_.number.fetch_add(1, std::memory_order_seq_cst);
    if (n_sleepers_.load(std::memory_order_seq_cst) != 0) round_.number.notify_all();
  }

  void stop() {
    round_.is_last = true;
    begin_round();
    for (std::thread& worker : workers_) worker.join();
  }

  void share(int index) const {
    const int64_t n = round_.n_items, size = round_.n_threads;
    const int64_t begin = n * index / size, end = n * (index + 1) / size;
    if (begin < end) round_.call(round_.context, begin, end);
  }

  void work(int index) {
    std::fesetenv(FE_DFL_ENV);  // not that of whoever loads the model: see Engine::feed
    for (uint32_t seen = 0;; ++seen) {
      const auto is_next = [&] { return round_.number.load(std::memory_order_acquire) != seen; };
      if (!spin_until(is_next, kIdle)) {
        n_sleepers_.fetch_add(1, std::memory_order_seq_cst);
        round_.number.wait(seen, std::memory_order_seq_cst);
        n_sleepers_.fetch_sub(1, std::memory_order_relaxed);
      }
      if (round_.is_last) return;
      share(index);
      arrived_.fetch_add(1, std::memory_order_release);
    }
  }

  // Whether it became true within about that time.
  template <typename Condition>
  bool spin_until(const Condition& is_true, Duration limit) const {
    using Clock = std::chrono::steady_clock;
    Clock::time_point end;
    for (int spins = 1; !is_true(); ++spins) {
      if (is_oversubscribed_) {
        std::this_thread::yield();
      } else {
        pause();
      }
      if (spins == kSpinsPerLook) {
        end = Clock::now() + limit;
      } else if (spins % kSpinsPerLook == 0 && Clock::now() >= end) {
        return false;
      }
    }
    return true;
  }

  // Leave the core's resources to its other hardware thread for a moment.
  static void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb" ::: "memory");  // yield does nothing on most cores
#endif
  }

  Round round_;
  alignas(kCacheLine) std::atomic<uint32_t> arrived_{0};  // workers, in all rounds; wraps around
  alignas(kCacheLine) std::atomic<uint32_t> n_sleepers_{0};
  uint32_t arrived_before_ = 0;  // arrived_ when the round before ended
  const bool is_oversubscribed_;
  std::vector<std::thread> workers_;
};

}  // namespace yocobit
