#include "probes/kernel_rates.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "engine/kv_cache.h"
#include "model/linear.h"
#include "probes/timed_passes.h"

namespace yocobit {
namespace {

// Bytes of a pass times the tokens or positions that use each: a few milliseconds of work, so that
// some passes are not interrupted by other programs.
constexpr size_t kPassBytes = size_t{8} << 20;
constexpr int kSplit = 512;  // positions that attention takes at a time
// In every byte: valid codes, and floats of both sizes that are small but not denormal.
constexpr int kFilling = 0x24;

size_t weight_row_bytes(const WeightFormat& format, int k) {
  if (!format.has_blocks()) return static_cast<size_t>(k) * format.bits / 8;
  const int n_blocks = (k + format.block_columns - 1) / format.block_columns;
  return static_cast<size_t>(n_blocks) * kBlockBytes;
}

// N tokens in every activation encoding, and room for the outputs of one matrix.
struct Operands {
  Operands(int n, int m, int k)
      : stride(static_cast<int>(round_up(k, kSignBlock))),
        int8(make_buffer<int8_t>(size_t(n) * stride)),
        int16(make_buffer<int16_t>(size_t(n) * stride)),
        scales(size_t(n) * stride / kActivationGroup, 1.0f),
        sums(size_t(n) * stride / kActivationGroup, 0),
        floats(size_t(n) * k, 0.5f),
        float32_scales(m, 1.0f),
        float16_scales(size_t(round_up(m, kRowsPerGroup)) * (stride / kInt4Block), 0x3c00),
        y(size_t(n) * m) {
    std::fill_n(int8.get(), size_t(n) * stride, int8_t{1});
    std::fill_n(int16.get(), size_t(n) * stride, int16_t{1});
  }

  int stride;
  Buffer<int8_t> int8;
  Buffer<int16_t> int16;
  std::vector<float> scales;  // of activations, as many as any encoding needs; sums likewise
  std::vector<int32_t> sums;
  std::vector<float> floats;
  std::vector<float> float32_scales;     // of weights: 1
  std::vector<uint16_t> float16_scales;  // likewise
  std::vector<float> y;
};

void multiply(const Kernels& kernels, const WeightFormat& format, const uint8_t* weights, int n,
              int m, int k, Operands& x) {
  const bool has_float16_scales = std::strcmp(format.scale_dtype, "F16") == 0;
  const Linear linear = {.format = &format,
                         .codes = weights,
                         .scales = has_float16_scales
                                       ? static_cast<const void*>(x.float16_scales.data())
                                       : x.float32_scales.data(),
                         .m = m,
                         .k = k};
  const Activations activations = {.values = x.floats.data(),
                                   .int8 = {.codes = x.int8.get(),
                                            .scales = x.scales.data(),
                                            .sums = x.sums.data(),
                                            .n = n,
                                            .stride = x.stride},
                                   .int16 = {.codes = x.int16.get(),
                                             .sums = x.sums.data(),
                                             .scales = x.scales.data(),
                                             .n = n,
                                             .stride = x.stride},
                                   .grouped = {.codes = x.int8.get(),
                                               .scales = x.scales.data(),
                                               .sums = x.sums.data(),
                                               .n = n,
                                               .stride = x.stride,
                                               .n_parts = 1},
                                   .n = n,
                                   .k = k};
  linear.apply(kernels, activations, 0, m / kRowsPerGroup, x.y.data(), m);
}

// Memory of caches and states: without huge pages, unless the system chooses them.
std::vector<Buffer<uint8_t>> buffers(size_t size, int n_threads) {
  std::vector<Buffer<uint8_t>> memory;
  for (int i = 0; i < n_threads; ++i) memory.push_back(make_buffer<uint8_t>(size));
  return memory;
}

// Median seconds of a pass over pass_bytes. The passes of a thread continue through its `size`
// bytes, of which all were read twice before, so that they are in the cache where they fit.
template <typename Fill, typename Pass>
double pass_seconds(const Threads& threads, size_t size, size_t pass_bytes, const Fill& fill,
                    const Pass& pass) {
  const auto prepare = [&](int thread) {
    fill(thread);
    for (size_t done = 0; done < 2 * size; done += pass_bytes) pass(thread);
  };
  std::vector<double> seconds = time_passes(threads.cpus, threads.n, threads.n_passes, prepare,
                                            [&](int thread, int) { pass(thread); });
  const auto middle = seconds.begin() + seconds.size() / 2;
  std::nth_element(seconds.begin(), middle, seconds.end());
  return *middle;
}

}  // namespace

double gemm_bytes_per_s(const Kernels& kernels, const WeightFormat& format, int n, int m, int k,
                        size_t size, const Threads& threads) {
  const size_t matrix = weight_row_bytes(format, k) * m,
               n_matrices = std::max<size_t>(size / matrix, 1);
  const size_t per_pass = std::max<size_t>(kPassBytes / (matrix * n), 1);
  std::vector<OwnMemory> memory;  // in huge pages, as the map of a model
  for (int i = 0; i < threads.n; ++i) memory.push_back(allocate_own(n_matrices * matrix));
  std::vector<Operands> operands;
  for (int i = 0; i < threads.n; ++i) operands.emplace_back(n, m, k);
  std::vector<size_t> next(threads.n);
  const double seconds = pass_seconds(
      threads, n_matrices * matrix, per_pass * matrix,
      [&](int thread) { std::memset(memory[thread].get(), kFilling, n_matrices * matrix); },
      [&](int thread) {
        for (size_t i = 0; i < per_pass; ++i) {
          const uint8_t* weights = memory[thread].get() + next[thread] * matrix;
          multiply(kernels, format, weights, n, m, k, operands[thread]);
          next[thread] = (next[thread] + 1) % n_matrices;
        }
      });
  return static_cast<double>(per_pass * matrix) * threads.n / seconds;
}

double attention_bytes_per_s(const Kernels& kernels, FloatType type, int n_queries, int head_dim,
                             size_t size, const Threads& threads) {
  const size_t row = row_bytes(type, head_dim);
  const bool has_scales = type == FloatType::i8 || type == FloatType::i4;
  const size_t position = 2 * (row + (has_scales ? sizeof(float) : 0));
  const int64_t capacity = std::max<int64_t>(size / (position * kSplit), 1) * kSplit;
  const size_t half = capacity * row, scales = capacity * sizeof(float);
  const size_t total = 2 * half + 2 * scales;
  std::vector<Buffer<uint8_t>> memory = buffers(total, threads.n);
  const size_t stride = head_dim + kPartialExtra;
  const std::vector<float> q(static_cast<size_t>(n_queries) * head_dim, 0.5f);
  std::vector<std::vector<float>> partials(threads.n, std::vector<float>(n_queries * stride));
  std::vector<std::vector<AttentionQuery>> queries(threads.n,
                                                   std::vector<AttentionQuery>(n_queries));
  std::vector<int64_t> next(threads.n);
  const int64_t per_pass = std::max<int64_t>(kPassBytes / (position * kSplit), 1);
  const size_t pass_bytes = per_pass * kSplit * position;
  const double seconds = pass_seconds(
      threads, total, pass_bytes,
      [&](int thread) { std::memset(memory[thread].get(), kFilling, total); },
      [&](int thread) {
        const uint8_t* begin = memory[thread].get();
        const float* key_scales = reinterpret_cast<const float*>(begin + 2 * half);
        const KeysValues cache = {.keys = begin,
                                  .values = begin + half,
                                  .key_scales = key_scales,
                                  .value_scales = key_scales + capacity,
                                  .type = type,
                                  .row_bytes = static_cast<int64_t>(row),
                                  .capacity = capacity,
                                  .head_dim = head_dim};
        for (int64_t i = 0; i < per_pass; ++i) {
          for (int query = 0; query < n_queries; ++query) {
            queries[thread][query] = {.q = &q[static_cast<size_t>(query) * head_dim],
                                      .begin = next[thread],
                                      .end = next[thread] + kSplit,
                                      .partial = &partials[thread][query * stride]};
          }
          kernels.attend(queries[thread].data(), n_queries, cache, 0.1f);
          next[thread] = (next[thread] + kSplit) % capacity;
        }
      });
  return static_cast<double>(pass_bytes) * threads.n / seconds;
}

double retention_bytes_per_s(const Kernels& kernels, int n, int head_dim, size_t size,
                             const Threads& threads) {
  const size_t values = static_cast<size_t>(head_dim) * head_dim, state = values * sizeof(float);
  const size_t n_states = std::max<size_t>(size / state, 1);
  const size_t per_pass = std::max<size_t>(kPassBytes / (2 * state * n), 1);
  std::vector<Buffer<uint8_t>> memory = buffers(n_states * state, threads.n);
  const std::vector<float> x(static_cast<size_t>(n) * head_dim, 0.1f), decays(n, 0.9f);
  std::vector<std::vector<float>> o(threads.n, x);
  std::vector<size_t> next(threads.n);
  const double seconds = pass_seconds(
      threads, n_states * state, per_pass * state,
      [&](int thread) { std::memset(memory[thread].get(), kFilling, n_states * state); },
      [&](int thread) {
        for (size_t i = 0; i < per_pass; ++i) {
          float* at = reinterpret_cast<float*>(memory[thread].get()) + next[thread] * values;
          kernels.retain(at, x.data(), x.data(), x.data(), head_dim, decays.data(), n, head_dim,
                         o[thread].data());
          next[thread] = (next[thread] + 1) % n_states;
        }
      });
  return static_cast<double>(per_pass * 2 * state) * threads.n / seconds;
}

}  // namespace yocobit
