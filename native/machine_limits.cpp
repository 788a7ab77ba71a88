#include "machine_limits.h"

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <iterator>
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
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kPassBytes = size_t{64} << 20;          // read by a thread in a pass
constexpr int64_t kPassMultiplyAdds = int64_t{1} << 28;  // by a thread in a pass
constexpr struct {
  int n_streams;
  size_t ahead;
} kPatterns[] = {{1, 0}, {4, 0}, {1, 1024}};

uint64_t read_compiled(const uint8_t* data, size_t size, int n_streams, size_t ahead) {
  constexpr size_t kWords = kReadStep / sizeof(uint64_t);
  const size_t part = size / n_streams / kReadStep * kReadStep;
  uint64_t sums[kWords] = {};
  for (size_t at = 0; at < part; at += kReadStep) {
    for (int stream = 0; stream < n_streams; ++stream) {
      const uint8_t* from = data + stream * part + at;
      if (ahead) {
        for (size_t line = 0; line < kReadStep; line += 64) __builtin_prefetch(from + ahead + line);
      }
      const uint64_t* words = reinterpret_cast<const uint64_t*>(from);
      for (size_t i = 0; i < kWords; ++i) sums[i] |= words[i];
    }
  }
  uint64_t all = 0;
  for (const uint64_t sum : sums) all |= sum;
  return all;
}

constexpr int kCompiledSize = 4096;

uint64_t multiply_add_compiled(int64_t n_rounds) {
  int8_t codes[kCompiledSize], x[kCompiledSize];
  std::memset(codes, 1, sizeof(codes));
  std::memset(x, 3, sizeof(x));
  int32_t sum = 0;
  for (int64_t round = 0; round < n_rounds; ++round) {
    asm volatile("" : : "r"(codes), "r"(x) : "memory");  // other values each time
    int32_t products = 0;
    for (int i = 0; i < kCompiledSize; ++i) products += codes[i] * x[i];
    sum |= products;
  }
  return static_cast<uint64_t>(sum);
}

const MultiplyAddLoop kCompiledLoop = {
    .instruction = "compiled loop", .per_round = kCompiledSize, .run = multiply_add_compiled};

ReadLoop fastest_read() {
#ifdef YOCOBIT_X86
  if (__builtin_cpu_supports("avx2")) return read_avx2;
#endif
  return read_compiled;
}

// A thread's own memory, in huge pages if the system grants them.
struct Free {
  void operator()(uint8_t* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<uint8_t, Free>;

Memory allocate(size_t size) {
  const size_t rounded = (size + kHugePage - 1) / kHugePage * kHugePage;
  Memory memory(static_cast<uint8_t*>(std::aligned_alloc(kHugePage, rounded)));
  if (!memory) throw std::bad_alloc();
#ifdef __linux__
  madvise(memory.get(), rounded, MADV_HUGEPAGE);
#endif
  return memory;
}

void stay_on(int cpu) {
#ifdef __linux__
  cpu_set_t only;
  CPU_ZERO(&only);
  CPU_SET(cpu, &only);
  pthread_setaffinity_np(pthread_self(), sizeof(only), &only);  // where it fails, go on anywhere
#else
  static_cast<void>(cpu);
#endif
}

// Seconds of the fastest pass. Each thread calls prepare(thread) once and then pass(thread, number)
// n_passes times, together with the others. A pass lasts from when the first thread begins it
// until the last has done it. prepare and pass must not throw.
template <typename Prepare, typename Pass>
double fastest_pass(const int* cpus, int n_threads, int n_passes, const Prepare& prepare,
                    const Pass& pass) {
  std::vector<Clock::time_point> begins(n_threads), ends(n_threads);
  double fastest = 1e30;
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
      fastest = std::min(fastest, std::chrono::duration<double>(last - first).count());
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
  return fastest;
}

std::atomic<uint64_t> used;  // where results go, so that they count as needed

}  // namespace

const MultiplyAddLoop* const* supported_multiply_adds() {
  static const std::vector<const MultiplyAddLoop*> loops = [] {
    std::vector<const MultiplyAddLoop*> found;
#ifdef YOCOBIT_X86
    if (__builtin_cpu_supports("avx2")) found.push_back(&kMaddubsLoop);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni")) {
      found.push_back(&kVnniLoop);
    }
#endif
    if (found.empty()) found.push_back(&kCompiledLoop);
    found.push_back(nullptr);
    return found;
  }();
  return loops.data();
}

double read_bytes_per_s(const int* cpus, int n_threads, size_t size, int n_passes) {
  const ReadLoop read = fastest_read();
  std::vector<Memory> memory;
  for (int i = 0; i < n_threads; ++i) memory.push_back(allocate(size));
  std::vector<size_t> next(n_threads);  // byte to go on from
  const double seconds = fastest_pass(
      cpus, n_threads, n_passes, [&](int thread) { std::memset(memory[thread].get(), 1, size); },
      [&](int thread, int number) {
        const auto [n_streams, ahead] = kPatterns[number % std::size(kPatterns)];
        uint64_t sum = 0;
        for (size_t done = 0; done < kPassBytes;) {
          const size_t n = std::min(size - next[thread], kPassBytes - done);
          sum |= read(memory[thread].get() + next[thread], n, n_streams, ahead);
          done += n;
          next[thread] = (next[thread] + n) % size;
        }
        used |= sum;
      });
  return static_cast<double>(kPassBytes) * n_threads / seconds;
}

double multiply_adds_per_s(const MultiplyAddLoop& loop, const int* cpus, int n_threads,
                           int n_passes) {
  const int64_t n_rounds = kPassMultiplyAdds / loop.per_round;
  const double seconds = fastest_pass(
      cpus, n_threads, n_passes, [](int) {}, [&](int, int) { used |= loop.run(n_rounds); });
  return static_cast<double>(n_rounds) * loop.per_round * n_threads / seconds;
}

}  // namespace yocobit
