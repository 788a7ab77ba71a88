#include "probes/machine_limits.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <iterator>
#include <vector>

#include "probes/timed_passes.h"

namespace yocobit {
namespace {

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
  std::vector<OwnMemory> memory;
  for (int i = 0; i < n_threads; ++i) memory.push_back(allocate_own(size));
  std::vector<size_t> next(n_threads);  // byte to go on from
  const std::vector<double> seconds = time_passes(
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
  return static_cast<double>(kPassBytes) * n_threads /
         *std::min_element(seconds.begin(), seconds.end());
}

double multiply_adds_per_s(const MultiplyAddLoop& loop, const int* cpus, int n_threads,
                           int n_passes) {
  const int64_t n_rounds = kPassMultiplyAdds / loop.per_round;
  const std::vector<double> seconds = time_passes(
      cpus, n_threads, n_passes, [](int) {}, [&](int, int) { used |= loop.run(n_rounds); });
  return static_cast<double>(n_rounds) * loop.per_round * n_threads /
         *std::min_element(seconds.begin(), seconds.end());
}

}  // namespace yocobit
