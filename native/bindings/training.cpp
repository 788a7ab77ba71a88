// The GEMMs of training as two Python functions, on arrays of NumPy or of PyTorch by DLPack.

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "bindings/arrays.h"
#include "engine/kv_cache.h"
#include "kernels/family.h"
#include "runtime/openmp.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace yocobit {

OpenMp openmp;  // set once, under the GIL, before the first GEMM

namespace {

using Inputs = std::vector<Array<const float, 2>>;
using Outputs = std::vector<Array<float, 2>>;

void use_openmp(uintptr_t parallel, uintptr_t thread_num, uintptr_t num_threads) {
  openmp.parallel = reinterpret_cast<decltype(openmp.parallel)>(parallel);
  openmp.thread_num = reinterpret_cast<decltype(openmp.thread_num)>(thread_num);
  openmp.num_threads = reinterpret_cast<decltype(openmp.num_threads)>(num_threads);
}

template <typename Array>
bool is_shape(const Array& array, size_t rows, size_t columns) {
  return array.shape(0) == rows && array.shape(1) == columns;
}

template <typename T, typename Arrays>
std::vector<T*> pointers(const Arrays& arrays) {
  std::vector<T*> all;
  for (const auto& array : arrays) all.push_back(array.data());
  return all;
}

// Weights with scales (number of weights, 2): the scale and the mean of each.
class Weights {
 public:
  Weights(const Inputs& weights, const Array<const float, 2>& scales, int64_t K, bool is_ternary) {
    require(!weights.empty() && is_shape(scales, weights.size(), 2),
            "scales must be a scale and a mean for each weight");
    // So that a sum is exact: |sum| <= 127 K < 2^24.
    require(K > 0 && K <= 1 << 17, "K must be from 1 to 131072");
    for (size_t i = 0; i < weights.size(); ++i) {
      require(is_shape(weights[i], weights[i].shape(0), K), "weights must be (M, K)");
      require(weights[i].shape(0) > 0 && weights[i].shape(0) < 1 << 24, "M must be from 1 to 2^24");
      all_.push_back({.values = weights[i].data(),
                      .m = static_cast<int>(weights[i].shape(0)),
                      .scale = scales.data()[2 * i],
                      .mean = scales.data()[2 * i + 1]});
    }
    projection = {.weights = all_.data(),
                  .n_weights = static_cast<int>(all_.size()),
                  .k = static_cast<int>(K),
                  .is_ternary = is_ternary};
  }
  Weights(const Weights&) = delete;

  template <typename Arrays>
  void require_outputs(const Arrays& arrays, size_t N) const {
    require(arrays.size() == all_.size(), "there must be one array (N, M) for each weight");
    for (size_t i = 0; i < all_.size(); ++i) {
      require(is_shape(arrays[i], N, all_[i].m), "there must be one array (N, M) for each weight");
    }
  }

  MasterWeights projection;

 private:
  std::vector<MasterWeight> all_;
};

Int8Rows rows_of(const Array<const int8_t, 2>& codes, const Array<const float, 1>& scales,
                 const MasterWeights& p) {
  const int block = p.is_ternary ? kTernaryBlock : kSignBlock;
  require(codes.shape(0) < 1 << 30 && codes.shape(0) == scales.shape(0),
          "codes must be (N, stride) and their scales (N,)");
  require(codes.shape(1) == static_cast<size_t>(n_blocks(p) * block),
          "codes must be padded to whole blocks of weights");
  return {.codes = codes.data(),
          .scales = scales.data(),
          .sums = nullptr,
          .n = static_cast<int>(codes.shape(0)),
          .stride = static_cast<int>(codes.shape(1))};
}

// Quantise x (N, K) to codes (N, stride) and x_scales (N,), then multiply by each weight into ys.
void training_forward(const std::string& name, int n_threads, const Array<const float, 2>& x,
                      const Inputs& weights, const Array<const float, 2>& scales, bool is_ternary,
                      Array<int8_t, 2>& codes, Array<float, 1>& x_scales, Outputs& ys) {
  const TrainingKernels& kernels = kernel_family(name).training;
  const Weights all(weights, scales, x.shape(1), is_ternary);
  const MasterWeights& p = all.projection;
  const Int8Rows rows = rows_of(Array<const int8_t, 2>(codes), Array<const float, 1>(x_scales), p);
  require(x.shape(0) == codes.shape(0), "codes must have a row for each row of x");
  all.require_outputs(ys, rows.n);
  const std::vector<float*> outs = pointers<float>(ys);

  const nb::gil_scoped_release release;
  const int groups = n_groups(p);
  const auto packed =
      make_buffer<uint8_t>(static_cast<size_t>(groups) * n_blocks(p) * kRowsPerGroup * kBlockBytes);
  parallel_for(openmp, n_threads, groups,
               [&](int64_t begin, int64_t end) { kernels.pack(p, begin, end, packed.get()); });
  const int64_t n_tiles = (rows.n + kTokenBlock - 1) / kTokenBlock;
  parallel_for(openmp, n_threads, n_tiles, [&](int64_t first, int64_t last) {
    const int begin = static_cast<int>(first * kTokenBlock);
    const int end = std::min<int64_t>(last * kTokenBlock, rows.n);
    kernels.quantize_rows(x.data(), p.k, rows.stride, begin, end, codes.data(), x_scales.data());
    kernels.project(p, packed.get(), rows, begin, end, outs.data());
  });
}

// From grads (N, M) of the outputs: gradients of x, unless None, and of the weights, unless empty.
void training_backward(const std::string& name, int n_threads, const Inputs& grads,
                       const Array<const int8_t, 2>& codes, const Array<const float, 1>& x_scales,
                       const Inputs& weights, const Array<const float, 2>& scales, bool is_ternary,
                       std::optional<Array<float, 2>> grad_x, Outputs& grad_ws) {
  const TrainingKernels& kernels = kernel_family(name).training;
  require(!weights.empty(), "there must be a weight");
  const Weights all(weights, scales, weights[0].shape(1), is_ternary);
  const MasterWeights& p = all.projection;
  const Int8Rows rows = rows_of(codes, x_scales, p);
  all.require_outputs(grads, rows.n);
  require(!grad_x || is_shape(*grad_x, rows.n, p.k), "the gradient of x must be (N, K)");
  require(grad_ws.empty() || grad_ws.size() == weights.size(),
          "there must be a gradient for each weight or for none");
  for (size_t i = 0; i < grad_ws.size(); ++i) {
    require(is_shape(grad_ws[i], p.weights[i].m, p.k), "the gradient of a weight must be (M, K)");
  }
  const std::vector<const float*> ins = pointers<const float>(grads);
  const std::vector<float*> outs = pointers<float>(grad_ws);

  const nb::gil_scoped_release release;
  if (grad_x) {
    const auto packed = make_buffer<uint8_t>(static_cast<size_t>(n_passes(p)) * p.k * 8);
    parallel_for(openmp, n_threads, n_passes(p), [&](int64_t begin, int64_t end) {
      kernels.pack_transposed(p, begin, end, packed.get());
    });
    const int64_t n_tiles = (rows.n + kGradientTokens - 1) / kGradientTokens;
    parallel_for(openmp, n_threads, n_tiles, [&](int64_t first, int64_t last) {
      const int begin = static_cast<int>(first * kGradientTokens);
      const int end = std::min<int64_t>(last * kGradientTokens, rows.n);
      kernels.input_gradient(p, packed.get(), ins.data(), begin, end, grad_x->data());
    });
  }
  if (outs.empty()) return;
  if (rows.n == 0) {
    for (int i = 0; i < p.n_weights; ++i) {
      std::memset(outs[i], 0, static_cast<size_t>(p.weights[i].m) * p.k * sizeof(float));
    }
  } else {
    parallel_for(openmp, n_threads, n_groups(p), [&](int64_t begin, int64_t end) {
      kernels.weight_gradient(p, ins.data(), rows, begin, end, outs.data());
    });
  }
}

}  // namespace

void bind_training(nb::module_& m) {
  m.def("use_openmp", &use_openmp, "parallel"_a, "thread_num"_a, "num_threads"_a,
        "Run training kernels on the OpenMP threads of PyTorch: the addresses of GOMP_parallel,\n"
        "omp_get_thread_num and omp_get_num_threads.");
  m.def("training_forward", &training_forward, "kernels"_a, "n_threads"_a, "x"_a.noconvert(),
        "weights"_a.noconvert(), "scales"_a.noconvert(), "is_ternary"_a, "codes"_a.noconvert(),
        "x_scales"_a.noconvert(), "ys"_a.noconvert(),
        "Multiply x (N, K) by quantised weights (M, K) into ys (N, M) each.\n\n"
        "`scales` (weights, 2) are the scale and the mean of each weight. Writes the int8 codes\n"
        "(N, stride) and the scales (N,) of x, which training_backward reads.");
  m.def("training_backward", &training_backward, "kernels"_a, "n_threads"_a, "grads"_a.noconvert(),
        "codes"_a.noconvert(), "x_scales"_a.noconvert(), "weights"_a.noconvert(),
        "scales"_a.noconvert(), "is_ternary"_a, "grad_x"_a.noconvert().none(),
        "grad_ws"_a.noconvert(),
        "Write the gradients of x (N, K), unless None, and of all weights (M, K) or of none.\n\n"
        "`grads` (N, M) are those of ys; the other arguments are those of training_forward.");
}

}  // namespace yocobit
