// A pool whose threads meet at a spinning barrier: work starts within a microsecond, and which
// thread computes an item never changes the item's result.
//
// A thread that waits makes no system call for longer than a decode loop pauses to draw a token, so
// that steps follow each other without one; then it sleeps. Where there are more threads than CPUs
// it yields as it spins. Where others want the CPUs it soon sleeps: what a thread spins away there
// it lacks when it has work, and every round waits for the thread whose turn comes last.
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
    n_expected_ += static_cast<uint32_t>(workers_.size());
    const auto is_done = [&] { return arrived_.load() == n_expected_; };
    if (spin_until(is_done, kPatience)) return;
    // Already so, a short wait does not show that it still is.
    const Clock::rep now = Clock::now().time_since_epoch().count();
    if (now >= busy_until_) busy_until_ = now + Clock::duration(kBusy).count();
    is_caller_asleep_ = true;
    for (uint32_t n = arrived_; n != n_expected_; n = arrived_) arrived_.wait(n);
    is_caller_asleep_ = false;
  }

 private:
  using Clock = std::chrono::steady_clock;
  // A worker that has no work for so long goes to sleep.
  static constexpr Clock::duration kIdle = std::chrono::milliseconds(2);
  // If the caller waits for so long, a worker has lost its CPU: more than uneven shares explain.
  static constexpr Clock::duration kPatience = std::chrono::microseconds(200);
  // For so long after that all threads spin no longer than this.
  static constexpr Clock::duration kBusy = std::chrono::milliseconds(20);
  static constexpr Clock::duration kBusySpin = std::chrono::microseconds(20);
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

  // With a CPU that others may want: where they do, going there helps once in a while at most.
  struct Backoff {
    static constexpr Clock::duration kLeast = std::chrono::milliseconds(5);
    static constexpr Clock::duration kMost = std::chrono::milliseconds(640);
    Clock::time_point last;
    Clock::duration pause = kLeast;

    bool is_over(Clock::time_point now) {
      if (now - last < pause) return false;
      pause = now - last < 10 * pause ? std::min(2 * pause, kMost) : kLeast;
      last = now;
      return true;
    }
  };

  // Who goes to sleep says so, then looks whether to; who wakes it makes that true, then looks
  // whether anybody said so. All in one order (sequentially consistent), so no sleeper is missed.
  void begin_round() {
    ++round_.number;
    if (n_sleepers_ == 0) return;
    caller_cpu_ = current_cpu();
    round_.number.notify_all();
  }

  void arrive() {
    ++arrived_;
    if (is_caller_asleep_) arrived_.notify_one();
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
    Backoff backoff;
    for (uint32_t seen = 0;; ++seen) {
      const auto is_next = [&] { return round_.number != seen; };
      if (!spin_until(is_next, kIdle)) {
        const Clock::time_point begin = Clock::now();
        const bool was_busy = is_busy(begin);
        ++n_sleepers_;
        round_.number.wait(seen);
        --n_sleepers_;
        if (current_cpu() == caller_cpu_) {
          const Clock::time_point now = Clock::now();
          const bool has_reasons = was_busy && now - begin < kBusy;
          if (!has_reasons || backoff.is_over(now)) leave(caller_cpu_);
        }
      }
      if (round_.is_last) return;
      share(index);
      arrive();
    }
  }

  bool is_busy(Clock::time_point now) const { return now.time_since_epoch().count() < busy_until_; }

  static int current_cpu() {
#if defined(__linux__)
    return sched_getcpu();
#else
    return -1;
#endif
  }

  // Go on on another CPU, if there is one. A system may leave a thread where the caller spins for
  // some 30 ms.
  void leave(int cpu) {
#if defined(__linux__)
    cpu_set_t all, others;
    if (cpu < 0 || sched_getaffinity(0, sizeof(all), &all) != 0) return;
    others = all;
    CPU_CLR(cpu, &others);
    if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof(others), &others) != 0) return;
    sched_setaffinity(0, sizeof(all), &all);
    busy_until_ = 0;  // that was what the caller has waited for
#else
    static_cast<void>(cpu);
#endif
  }

  // Whether it became true within about that time.
  template <typename Condition>
  bool spin_until(const Condition& is_true, Clock::duration limit) const {
    Clock::time_point end;
    for (int spins = 1; !is_true(); ++spins) {
      if (is_oversubscribed_) {
        std::this_thread::yield();
      } else {
        pause();
      }
      if (spins % kSpinsPerLook != 0) continue;
      const Clock::time_point now = Clock::now();
      if (spins == kSpinsPerLook) {
        end = now + (is_busy(now) ? kBusySpin : limit);
      } else if (now >= end) {
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
  uint32_t n_expected_ = 0;                               // arrived_ when the round ends
  alignas(kCacheLine) std::atomic<uint32_t> n_sleepers_{0};
  std::atomic<bool> is_caller_asleep_{false};
  std::atomic<int> caller_cpu_{-1};  // when it woke workers; -1 if not known
  std::atomic<Clock::rep> busy_until_{0};
  const bool is_oversubscribed_;
  std::vector<std::thread> workers_;
};

}  // namespace yocobit
