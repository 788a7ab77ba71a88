#include "probes/machine_limits.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <iterator>
#include <vector>

#include "kernels/family.h"
#include "probes/timed_passes.h"

namespace yocobit {
namespace {

constexpr size_t kPassBytes = size_t{64} << 20;          // read by a thread in a pass
constexpr int64_t kPassMultiplyAdds = int64_t{1} << 28;  // by a thread in a pass
constexpr struct {
  int n_streams;
  size_t ahead;
} kPatterns[] = {{1, 0}, {4, 0}, {1, 1024}};

std::atomic<uint64_t> used;  // keeps results alive

}  // namespace

std::vector<const MultiplyAddLoop*> supported_multiply_adds() {
  std::vector<const MultiplyAddLoop*> loops;
  for (const KernelFamily& family : supported_families()) {
    const MultiplyAddLoop* loop = family.probes.multiply_add;
    if (loops.empty() || loop != loops.back()) loops.push_back(loop);
  }
  if (loops.size() > 1) loops.erase(loops.begin());  // instructions are faster than compiled loops
  return loops;
}

double read_bytes_per_s(const int* cpus, int n_threads, size_t size, int n_passes) {
  const ReadLoop read = supported_families().back().probes.read;
  std::vector<OwnMemory> memory;
  for (int i = 0; i < n_threads; ++i) memory.push_back(allocate_own(size));
  std::vector<size_t> next(n_threads);  // byte to continue from
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
