// The native parts of yocobit bench and plan: limits of the machine, throughput of single kernels,
// and sessions filled with noise.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/arrays.h"
#include "engine/session.h"
#include "kernels/family.h"
#include "probes/kernel_rates.h"
#include "probes/machine_limits.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace yocobit {
namespace {

constexpr int64_t kPage = 4096;

void check(const std::vector<int>& cpus, int n_passes) {
  if (cpus.empty() || cpus.size() > 1024 || n_passes < 1) {
    throw std::invalid_argument("limits: need 1 to 1024 CPUs and at least one pass but got " +
                                std::to_string(cpus.size()) + " and " + std::to_string(n_passes));
  }
}

std::vector<std::string> multiply_add_instructions() {
  std::vector<std::string> names;
  for (const MultiplyAddLoop* loop : supported_multiply_adds()) {
    names.emplace_back(loop->instruction);
  }
  return names;
}

double measured_multiply_adds(const std::string& instruction, const std::vector<int>& cpus,
                              int n_passes) {
  check(cpus, n_passes);
  for (const MultiplyAddLoop* loop : supported_multiply_adds()) {
    if (instruction != loop->instruction) continue;
    nb::gil_scoped_release release;
    return multiply_adds_per_s(*loop, cpus.data(), static_cast<int>(cpus.size()), n_passes);
  }
  throw std::invalid_argument("instruction '" + instruction + "' is not supported by this CPU");
}

double measured_read(const std::vector<int>& cpus, int64_t size, int n_passes) {
  check(cpus, n_passes);
  if (size < kPage || size % kPage) {
    throw std::invalid_argument("limits: size must be a positive multiple of 4096 but is " +
                                std::to_string(size));
  }
  nb::gil_scoped_release release;
  return read_bytes_per_s(cpus.data(), static_cast<int>(cpus.size()), size, n_passes);
}

// Check the arguments that all kernel rates share, and call measure(kernels, threads).
template <typename Measure>
double measured_rate(const std::string& family, const std::vector<int>& cpus, int64_t size,
                     int n_passes, const Measure& measure) {
  check(cpus, n_passes);
  require(size > 0, "rates: size must be positive");
  const Kernels& kernels = kernel_family(family).kernels;
  const Threads threads = {
      .cpus = cpus.data(), .n = static_cast<int>(cpus.size()), .n_passes = n_passes};
  nb::gil_scoped_release release;
  return measure(kernels, threads);
}

double measured_gemm(const std::string& family, const std::string& stored, int n, int m, int k,
                     const std::vector<int>& cpus, int64_t size, int n_passes) {
  require(n > 0 && n <= 1024, "rates: n must be between 1 and 1024");
  require(m > 0 && m % kRowsPerGroup == 0 && m <= 1 << 20, "rates: m must be a multiple of 8");
  require(k > 0 && k % 8 == 0 && k <= 1 << 17, "rates: k must be a multiple of 8");
  const WeightFormat& format = weight_format(stored);
  return measured_rate(family, cpus, size, n_passes, [&](const auto& kernels, const auto& threads) {
    return gemm_bytes_per_s(kernels, format, n, m, k, size, threads);
  });
}

double measured_attention(const std::string& family, const std::string& cache, int n_queries,
                          int head_dim, const std::vector<int>& cpus, int64_t size, int n_passes) {
  require(n_queries > 0 && n_queries <= 8192, "rates: n_queries must be between 1 and 8192");
  require(head_dim > 0 && head_dim % 8 == 0 && head_dim <= kMaxHeadDim,
          "rates: head_dim must be a multiple of 8, at most 1024");
  const FloatType type = cache_type(cache).type;
  return measured_rate(family, cpus, size, n_passes, [&](const auto& kernels, const auto& threads) {
    return attention_bytes_per_s(kernels, type, n_queries, head_dim, size, threads);
  });
}

double measured_retention(const std::string& family, int n, int head_dim,
                          const std::vector<int>& cpus, int64_t size, int n_passes) {
  require(n > 0 && n <= 1024, "rates: n must be between 1 and 1024");
  require(head_dim > 0 && head_dim % 8 == 0 && head_dim <= kMaxHeadDim,
          "rates: head_dim must be a multiple of 8, at most 1024");
  return measured_rate(family, cpus, size, n_passes, [&](const auto& kernels, const auto& threads) {
    return retention_bytes_per_s(kernels, n, head_dim, size, threads);
  });
}

// Rows of noise in [-1, 1), one after the other and again from the first.
class Noise {
 public:
  explicit Noise(int size) : size_(size), values_(size_t{kRows} * size) {
    uint32_t random = 1;
    for (float& value : values_) {
      random = random * 1664525u + 1013904223u;
      value = static_cast<float>(random) * 0x1p-31f - 1.0f;
    }
  }

  const float* next() {
    row_ = (row_ + 1) % kRows;
    return &values_[static_cast<size_t>(row_) * size_];
  }

 private:
  static constexpr int kRows = 61;
  int size_, row_ = 0;
  std::vector<float> values_;
};

// Fill a new session with n positions of noise: later steps then take as long as after n tokens. A
// ring buffer gets the last positions only.
void fill(Session& session, int64_t n) {
  if (session.position != 0 || n < 0 || n > session.max_tokens) {
    throw std::invalid_argument("fill: needs a new session with room for " + std::to_string(n) +
                                " tokens but it holds " + std::to_string(session.position) +
                                " of " + std::to_string(session.max_tokens));
  }
  const Kernels* kernels = &kernel_family("").kernels;
  const auto fill_cache = [&](KvCache& cache) {
    Noise noise(cache.head_dim());
    for (int head = 0; head < cache.n_heads(); ++head) {
      for (int64_t i = std::max<int64_t>(0, n - cache.capacity()); i < n; ++i) {
        cache.store(*kernels, head, i, noise.next(), noise.next());
      }
    }
  };
  nb::gil_scoped_release release;
  for (LayerState& layer : session.layers) {
    if (layer.kv) fill_cache(*layer.kv);
  }
  if (session.shared_kv) fill_cache(*session.shared_kv);
  session.update_block_index(*kernels, 0, n);
  std::fill_n(session.tokens.get(), n, 0);
  session.position = n;
}

}  // namespace

void bind_benchmark(nb::module_& m) {
  m.def("multiply_add_instructions", &multiply_add_instructions,
        "Return the names of the int8 multiply-add instructions that this CPU has.");
  m.def("multiply_adds_per_s", &measured_multiply_adds, "instruction"_a, "cpus"_a, "n_passes"_a,
        "Measure multiply-adds per second of one thread on each CPU, the best of n passes.");
  m.def("read_bytes_per_s", &measured_read, "cpus"_a, "size"_a, "n_passes"_a,
        "Measure bytes read per second by one thread on each CPU, each from its own `size` bytes\n"
        "(a multiple of 4096), the best of n passes.");
  m.def(
      "gemm_bytes_per_s", &measured_gemm, "kernels"_a, "stored"_a, "n"_a, "m"_a, "k"_a, "cpus"_a,
      "size"_a, "n_passes"_a,
      "Measure weight bytes per second of GEMMs (n, k) x (m, k) in a weight format, the median of\n"
      "n passes, each thread over its own `size` bytes of weights.");
  m.def(
      "attention_bytes_per_s", &measured_attention, "kernels"_a, "cache"_a, "n_queries"_a,
      "head_dim"_a, "cpus"_a, "size"_a, "n_passes"_a,
      "Measure KV cache bytes per second of attention with n_queries heads per KV head, likewise.");
  m.def(
      "retention_bytes_per_s", &measured_retention, "kernels"_a, "n"_a, "head_dim"_a, "cpus"_a,
      "size"_a, "n_passes"_a,
      "Measure state bytes per second of retention over n positions, read and written, likewise.");
  m.def("fill", &fill, "session"_a, "n"_a,
        "Fill the KV caches of a new session with n positions of noise.\n\n"
        "Later steps take as long as after n tokens. ValueError if it is not new or too small.");
}

}  // namespace yocobit
