// A thread pool with a spinning barrier: work starts within a microsecond, and which thread
// computes an item never changes the item's result.
//
// A waiting thread spins, without system calls, for longer than a decode loop pauses to sample a
// token, so that steps follow each other without one; then it sleeps. Where there are more threads
// than CPUs it yields as it spins. On a busy machine it soon sleeps: time spent spinning is taken
// from other threads, and every epoch waits for the thread that is scheduled last.
// runtime/affinity.h decides where workers run.
//
// The workers do not exist in a child process after fork(): restart_after_fork() starts them again.
#pragma once

#include <atomic>
#include <cfenv>
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/affinity.h"
#include "runtime/fork.h"

namespace yocobit {

class ThreadPool {
 public:
  // Throws std::runtime_error if the system grants fewer threads.
  explicit ThreadPool(int n_threads)
      : n_threads_(n_threads), is_oversubscribed_(n_threads > available_cpus()) {
    start();
  }

  ~ThreadPool() { stop(); }

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return n_threads_; }

  // Start the workers again if this process is a child that fork() made since they were started.
  // Throws as the constructor does; the next call then tries again. Not during parallel_for.
  void restart_after_fork() {
    if (n_forks_ == n_forks()) return;
    abandon();
    start();
  }

  // Call task(begin, end) on one contiguous part of [0, n_items) per thread; return when all are
  // done. One caller at a time. Tasks must not throw. A single item runs on the caller alone.
  template <typename Task>
  void parallel_for(int64_t n_items, const Task& task) {
    if (n_threads_ == 1 || n_items <= 1) {
      if (n_items > 0) task(int64_t{0}, n_items);
      return;
    }
    epoch_.context = &task;
    epoch_.call = [](const void* context, int64_t begin, int64_t end) {
      (*static_cast<const Task*>(context))(begin, end);
    };
    epoch_.n_items = n_items;
    epoch_.n_threads = size();
    start_epoch();
    run_part(0);
    n_expected_ += static_cast<uint32_t>(workers_.size());
    const auto is_done = [&] { return arrived_.load() == n_expected_; };
    if (spin_until(is_done, kCallerTimeout)) return;
    // Already busy, a short wait does not show that the machine still is.
    const Clock::rep now = Clock::now().time_since_epoch().count();
    if (now >= busy_until_) busy_until_ = now + Clock::duration(kBusy).count();
    is_caller_asleep_ = true;
    for (uint32_t n = arrived_; n != n_expected_; n = arrived_) arrived_.wait(n);
    is_caller_asleep_ = false;
  }

 private:
  using Clock = std::chrono::steady_clock;
  // Spin timeouts. A worker without work sleeps after:
  static constexpr Clock::duration kWorkerTimeout = std::chrono::milliseconds(2);
  // A caller that waits longer has a worker that lost its CPU: uneven parts do not explain it.
  static constexpr Clock::duration kCallerTimeout = std::chrono::microseconds(200);
  // For this long after that, the machine counts as busy, and all threads spin no longer than:
  static constexpr Clock::duration kBusy = std::chrono::milliseconds(20);
  static constexpr Clock::duration kBusyTimeout = std::chrono::microseconds(20);
  static constexpr int kSpinsPerClockRead = 64;
  static constexpr int kCacheLine = 64;

  // Written by the caller, read by workers: one cache line on its way from one to the other.
  struct alignas(kCacheLine) Epoch {
    std::atomic<uint32_t> number{0};  // 32 bits, so that waiting is a futex and no more
    int n_threads = 0;
    const void* context = nullptr;
    void (*call)(const void*, int64_t, int64_t) = nullptr;
    int64_t n_items = 0;
    bool is_last = false;
  };

  void start() {
    n_forks_ = n_forks();
    try {
      for (int i = 1; i < n_threads_; ++i) workers_.emplace_back([this, i] { work(i); });
    } catch (const std::system_error& error) {
      const size_t n = workers_.size() + 1;
      stop();
      reset();
      --n_forks_;
      throw std::runtime_error("threads must be at most " + std::to_string(n) + " here but are " +
                               std::to_string(n_threads_) + " (" + error.what() + ")");
    }
  }

  // Forget the workers of the parent process: they cannot be joined, so their handles are leaked.
  void abandon() {
    if (!workers_.empty()) new std::vector<std::thread>(std::move(workers_));
    reset();
  }

  void reset() {
    workers_.clear();
    epoch_.number = 0;
    epoch_.is_last = false;
    arrived_ = n_expected_ = 0;
    n_sleepers_ = 0;
    is_caller_asleep_ = false;
    busy_until_ = 0;
  }

  // A thread that goes to sleep announces it, then checks whether to; a thread that wakes it makes
  // that condition true, then checks for announcements. All of that is sequentially consistent, so
  // no sleeper is missed.
  void start_epoch() {
    ++epoch_.number;
    if (n_sleepers_ == 0) return;
    caller_cpu_ = current_cpu();
    epoch_.number.notify_all();
  }

  void arrive() {
    ++arrived_;
    if (is_caller_asleep_) arrived_.notify_one();
  }

  void stop() {
    if (!workers_.empty() && n_forks_ != n_forks()) abandon();
    epoch_.is_last = true;
    start_epoch();
    for (std::thread& worker : workers_) worker.join();
  }

  void run_part(int index) const {
    const int64_t n = epoch_.n_items, size = epoch_.n_threads;
    const int64_t begin = n * index / size, end = n * (index + 1) / size;
    if (begin < end) epoch_.call(epoch_.context, begin, end);
  }

  void work(int index) {
    std::fesetenv(FE_DFL_ENV);  // not that of the thread that loads the model: see Engine::feed
    WakeMigration migration;
    for (uint32_t seen = 0;; ++seen) {
      const auto is_next = [&] { return epoch_.number != seen; };
      if (!spin_until(is_next, kWorkerTimeout)) sleep(seen, migration);
      if (epoch_.is_last) return;
      run_part(index);
      arrive();
    }
  }

  void sleep(uint32_t seen, WakeMigration& migration) {
    const Clock::time_point begin = Clock::now();
    const bool was_busy = is_busy(begin);
    ++n_sleepers_;
    epoch_.number.wait(seen);
    --n_sleepers_;
    const Clock::time_point now = Clock::now();
    // Sharing the caller's CPU was what the caller has waited for: it is no longer busy.
    if (migration.on_wake(caller_cpu_, was_busy && now - begin < kBusy, now)) busy_until_ = 0;
  }

  bool is_busy(Clock::time_point now) const { return now.time_since_epoch().count() < busy_until_; }

  // Whether it became true within about that time.
  template <typename Condition>
  bool spin_until(const Condition& is_true, Clock::duration timeout) const {
    Clock::time_point end;
    for (int spins = 1; !is_true(); ++spins) {
      if (is_oversubscribed_) {
        std::this_thread::yield();
      } else {
        pause();
      }
      if (spins % kSpinsPerClockRead != 0) continue;
      const Clock::time_point now = Clock::now();
      if (spins == kSpinsPerClockRead) {
        end = now + (is_busy(now) ? kBusyTimeout : timeout);
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

  Epoch epoch_;
  alignas(kCacheLine) std::atomic<uint32_t> arrived_{0};  // workers, in all epochs; wraps around
  uint32_t n_expected_ = 0;                               // arrived_ when the epoch ends
  alignas(kCacheLine) std::atomic<uint32_t> n_sleepers_{0};
  std::atomic<bool> is_caller_asleep_{false};
  std::atomic<int> caller_cpu_{-1};  // when it woke workers; -1 if not known
  std::atomic<Clock::rep> busy_until_{0};
  const int n_threads_;
  const bool is_oversubscribed_;
  uint32_t n_forks_ = 0;  // n_forks() when the workers were started
  std::vector<std::thread> workers_;
};

}  // namespace yocobit
