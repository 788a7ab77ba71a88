// Loops of all sizes on pools of all sizes, oversubscribed too: every item is computed once, by the
// thread whose part it is in, and what one epoch wrote is visible in the next. For ThreadSanitizer.
// A worker that wakes on the caller's CPU migrates.

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <vector>

#include "runtime/thread_pool.h"

namespace yocobit {
namespace {

void check(bool is_true, const char* claim, int n_threads) {
  if (is_true) return;
  std::printf("%d threads: %s\n", n_threads, claim);
  std::exit(1);
}

// Plain memory, so that a missing barrier is a race.
struct Items {
  std::vector<int> rounds;           // that an item was computed in
  std::vector<std::thread::id> ids;  // of the threads that started a part in this round
};

void run_rounds(ThreadPool& pool, Items& items, int n_rounds, int first_size) {
  for (int round = 0; round < n_rounds; ++round) {
    const int n = (first_size + round * 7) % static_cast<int>(items.rounds.size());
    std::fill(items.ids.begin(), items.ids.end(), std::thread::id());
    int before = 0;
    for (int i = 0; i < n; ++i) before += items.rounds[i];
    pool.parallel_for(n, [&](int64_t begin, int64_t end) {
      items.ids[begin] = std::this_thread::get_id();
      for (int64_t i = begin; i < end; ++i) ++items.rounds[i];
    });
    int after = 0, n_parts = 0;
    for (int i = 0; i < n; ++i) {
      after += items.rounds[i];
      n_parts += items.ids[i] != std::thread::id();
    }
    check(after == before + n, "every item must be computed once", pool.size());
    check(n_parts == (n > 1 ? std::min(n, pool.size()) : n), "parts must be one per thread",
          pool.size());
  }
}

double cpu_seconds() {
  timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

void stress(int n_threads) {
  Items items = {.rounds = std::vector<int>(100), .ids = std::vector<std::thread::id>(100)};
  {
    const ThreadPool unused(n_threads);
  }
  for (int i = 0; i < 20; ++i) {
    ThreadPool pool(n_threads);
    run_rounds(pool, items, 10, i);
  }
  ThreadPool pool(n_threads);
  run_rounds(pool, items, 500, 0);
  // Pauses around the time after which workers go to sleep.
  for (const int pause_us : {100, 1000, 1900, 2000, 2100, 2500, 5000, 20000}) {
    for (int i = 0; i < 4; ++i) {
      std::this_thread::sleep_for(std::chrono::microseconds(pause_us));
      run_rounds(pool, items, 3, i);
    }
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  const double before = cpu_seconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  check(cpu_seconds() - before < 0.1, "a pool without work must use no CPU", n_threads);
}

// All CPUs are busy when the caller wakes the worker; all but the caller's are idle soon after.
void migrate_on_wake() {
#if defined(__linux__)
  cpu_set_t all;
  if (sched_getaffinity(0, sizeof(all), &all) != 0 || CPU_COUNT(&all) < 2) return;
  for (int attempt = 0; attempt < 50; ++attempt) {
    ThreadPool pool(2);
    int worker = -1;
    std::atomic<bool> is_spinning{true};
    const auto where = [&](int64_t begin, int64_t) {
      is_spinning = false;
      if (begin == 1) worker = sched_getcpu();
    };
    pool.parallel_for(2, where);
    std::this_thread::sleep_for(std::chrono::milliseconds(30));  // the worker sleeps by then
    const int before = worker;
    is_spinning = true;
    std::vector<std::thread> others;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (cpu == before || !CPU_ISSET(cpu, &all)) continue;
      others.emplace_back([&is_spinning, cpu] {
        bind_to_cpu(cpu);
        while (is_spinning) continue;
      });
    }
    bind_to_cpu(before);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    pool.parallel_for(2, where);
    sched_setaffinity(0, sizeof(all), &all);
    for (std::thread& other : others) other.join();
    if (worker != before) return;
  }
  check(false, "a worker must leave the caller's CPU", 2);
#endif
}

}  // namespace
}  // namespace yocobit

int main() {
  for (int n_threads = 1; n_threads <= 8; ++n_threads) yocobit::stress(n_threads);
  yocobit::migrate_on_wake();
  std::printf("%d CPUs, 1 to 8 threads: good\n", yocobit::available_cpus());
}
