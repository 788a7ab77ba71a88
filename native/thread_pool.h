// A pool whose threads meet at a spinning barrier: work starts within a microsecond or two, and
// which thread computes an item never changes the item's result.
#pragma once

#include <atomic>
#include <cfenv>
#include <cstdint>
#include <thread>
#include <vector>

namespace yocobit {

class ThreadPool {
 public:
  explicit ThreadPool(int n_threads) {
    for (int i = 1; i < n_threads; ++i) workers_.emplace_back([this, i] { work(i); });
  }

  ~ThreadPool() {
    stopping_ = true;
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

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
    context_ = &task;
    call_ = [](const void* context, int64_t begin, int64_t end) {
      (*static_cast<const Task*>(context))(begin, end);
    };
    n_items_ = n_items;
    pending_.store(size() - 1, std::memory_order_relaxed);
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    share(0);
    for (int spins = 0; pending_.load(std::memory_order_acquire) != 0; ++spins) {
      if (spins > kSpins) std::this_thread::yield();
    }
  }

 private:
  static constexpr int kSpins = 20000;

  void share(int index) {
    const int64_t begin = n_items_ * index / size(), end = n_items_ * (index + 1) / size();
    if (begin < end) call_(context_, begin, end);
  }

  void work(int index) {
    std::fesetenv(FE_DFL_ENV);  // not that of whoever loads the model: see Session::feed
    uint64_t seen = 0;
    while (true) {
      for (int spins = 0; round_.load(std::memory_order_acquire) == seen; ++spins) {
        if (spins > kSpins) round_.wait(seen, std::memory_order_acquire);
      }
      ++seen;
      if (stopping_) return;
      share(index);
      pending_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::vector<std::thread> workers_;
  std::atomic<uint64_t> round_{0};
  std::atomic<int> pending_{0};
  std::atomic<bool> stopping_{false};
  const void* context_ = nullptr;
  void (*call_)(const void*, int64_t, int64_t) = nullptr;
  int64_t n_items_ = 0;
};

}  // namespace yocobit
