// fork(): only the calling thread exists in the child. A child must not inherit a mutex that
// another thread holds, nor the data that it protects half-written, and a thread pool must start
// its threads again.
#pragma once

#include <cstdint>
#include <mutex>

namespace yocobit {

// The number of forks of this process and its ancestors since the library was loaded. Threads that
// were started at another number do not exist in this process.
uint32_t n_forks();

// A mutex that fork() locks first: it waits for the thread inside, and parent and child continue
// with the mutex unlocked. A thread must not fork, lock another one or wait for Python's GIL while
// it holds one.
class ForkSafeMutex {
 public:
  ForkSafeMutex();
  ~ForkSafeMutex();
  ForkSafeMutex(const ForkSafeMutex&) = delete;
  ForkSafeMutex& operator=(const ForkSafeMutex&) = delete;

  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  std::mutex mutex_;
};

}  // namespace yocobit
