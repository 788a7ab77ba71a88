#include "runtime/fork.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <vector>

namespace yocobit {
namespace {

// All mutexes that fork() locks. Never destroyed: objects may outlive static destruction.
struct Registry {
  std::mutex mutex;
  std::vector<ForkSafeMutex*> mutexes;
  std::atomic<uint32_t> n_forks{0};
};

Registry& registry() {
  static Registry* const instance = [] {
    auto* created = new Registry;
    pthread_atfork(
        [] {
          registry().mutex.lock();
          for (ForkSafeMutex* mutex : registry().mutexes) mutex->lock();
        },
        [] {
          for (ForkSafeMutex* mutex : registry().mutexes) mutex->unlock();
          registry().mutex.unlock();
        },
        [] {
          ++registry().n_forks;
          for (ForkSafeMutex* mutex : registry().mutexes) mutex->unlock();
          registry().mutex.unlock();
        });
    return created;
  }();
  return *instance;
}

// When the library is loaded: the first call may be in a child of which nothing was recorded.
[[maybe_unused]] const Registry& kLoaded = registry();

}  // namespace

uint32_t n_forks() { return registry().n_forks; }

ForkSafeMutex::ForkSafeMutex() {
  const std::lock_guard<std::mutex> lock(registry().mutex);
  registry().mutexes.push_back(this);
}

ForkSafeMutex::~ForkSafeMutex() {
  const std::lock_guard<std::mutex> lock(registry().mutex);
  std::erase(registry().mutexes, this);
}

}  // namespace yocobit
