// The row kernels of training as Python functions, on tensors of PyTorch by DLPack.

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <vector>

#include "bindings/arrays.h"
#include "kernels/family.h"
#include "runtime/openmp.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace yocobit {

extern OpenMp openmp;  // bindings/training.cpp

namespace {

using In = Array<const float, 2>;
using InRow = Array<const float, 1>;
using Out = Array<float, 2>;
using OutRow = Array<float, 1>;
using Heads = Array<const float, 3>;

template <typename A, typename B>
void require_same(const A& a, const B& b) {
  require(a.shape(0) == b.shape(0) && a.shape(1) == b.shape(1), "matrices must be of one shape");
}

// K of x, if the rows of `weight` and `r` fit it.
template <typename Weight, typename R>
int features(const In& x, const Weight& weight, const R& r) {
  const size_t N = x.shape(0), K = x.shape(1);
  require(K > 0 && K < 1 << 24 && K % kLanes == 0, "K must be a multiple of 8 below 2^24");
  require(weight.shape(0) == K && r.shape(0) == N, "weight must be (K,) and r (N,)");
  return static_cast<int>(K);
}

void norm(const std::string& name, int n_threads, const In& x, const InRow& weight, float eps,
          Out& y, OutRow& r) {
  const RowKernels& kernels = kernel_family(name).rows;
  const int K = features(x, weight, r);
  require_same(x, y);
  const nb::gil_scoped_release release;
  parallel_for(openmp, n_threads, x.shape(0), [&](int64_t begin, int64_t end) {
    kernels.norm(x.data(), weight.data(), K, eps, begin, end, y.data(), r.data());
  });
}

// Call part(begin, end, sums) for n_threads parts of N rows, each with its own sums (K,), initially
// 0. Add these up in `total` in order, so that the result does not depend on which threads ran.
template <typename Part>
void reduce_sums(int n_threads, int64_t N, int K, float* total, const Part& part) {
  const int64_t n_parts = n_threads < 1 ? 1 : n_threads;
  std::vector<float> sums(n_parts * K);
  parallel_for(openmp, n_threads, n_parts, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      part(N * i / n_parts, N * (i + 1) / n_parts, sums.data() + i * K);
    }
  });
  for (int k = 0; k < K; ++k) {
    total[k] = 0.0f;
    for (int64_t i = 0; i < n_parts; ++i) total[k] += sums[i * K + k];
  }
}

void norm_gradient(const std::string& name, int n_threads, const In& grad, const In& x,
                   const InRow& weight, const InRow& r, Out& grad_x, OutRow& grad_weight) {
  const RowKernels& kernels = kernel_family(name).rows;
  const int K = features(x, weight, r);
  require_same(x, grad);
  require_same(x, grad_x);
  require(grad_weight.shape(0) == x.shape(1), "grad_weight must be (K,)");
  const nb::gil_scoped_release release;
  reduce_sums(n_threads, x.shape(0), K, grad_weight.data(),
              [&](int64_t begin, int64_t end, float* sums) {
                kernels.norm_gradient(grad.data(), x.data(), weight.data(), r.data(), K, begin, end,
                                      grad_x.data(), sums);
              });
}

GatedRows gated_rows(const In& gate, const Heads& up, const std::optional<InRow>& weight,
                     size_t n_head_r, float eps) {
  const size_t N = gate.shape(0), K = gate.shape(1), H = up.shape(0), D = up.shape(2);
  require(K > 0 && K < 1 << 24 && D % kLanes == 0 && H * D == K && up.shape(1) == N,
          "up must be (H, N, D) with D a multiple of 8 and gate (N, H * D)");
  require(!weight || weight->shape(0) == K, "weight must be (K,)");
  require(n_head_r == N * H || (n_head_r == 0 && H == 1), "head_r must be (N, H)");
  return {.gate = gate.data(),
          .up = up.data(),
          .weight = weight ? weight->data() : nullptr,
          .n = static_cast<int64_t>(N),
          .k = static_cast<int>(K),
          .n_heads = n_head_r ? static_cast<int>(H) : 0,
          .eps = eps};
}

void gate(const std::string& name, int n_threads, const In& gate, const Heads& up,
          const std::optional<InRow>& weight, float eps, Out& y, OutRow& r, Out& head_r) {
  const RowKernels& kernels = kernel_family(name).rows;
  const GatedRows rows = gated_rows(gate, up, weight, head_r.size(), eps);
  require_same(gate, y);
  require(r.shape(0) == gate.shape(0), "r must be (N,)");
  const nb::gil_scoped_release release;
  parallel_for(openmp, n_threads, rows.n, [&](int64_t begin, int64_t end) {
    kernels.gate(rows, begin, end, y.data(), r.data(), head_r.data());
  });
}

void gate_gradient(const std::string& name, int n_threads, const In& grad, const In& gate,
                   const Heads& up, const std::optional<InRow>& weight, const InRow& r,
                   const In& head_r, Out& grad_gate, Out& grad_up, OutRow& grad_weight) {
  const RowKernels& kernels = kernel_family(name).rows;
  const GatedRows rows = gated_rows(gate, up, weight, head_r.size(), 0.0f);
  require_same(gate, grad);
  require_same(gate, grad_gate);
  require_same(gate, grad_up);
  require(r.shape(0) == gate.shape(0), "r must be (N,)");
  require(grad_weight.shape(0) == gate.shape(1), "grad_weight must be (K,)");
  const nb::gil_scoped_release release;
  reduce_sums(n_threads, rows.n, rows.k, grad_weight.data(),
              [&](int64_t begin, int64_t end, float* sums) {
                kernels.gate_gradient(grad.data(), rows, r.data(), head_r.data(), begin, end,
                                      grad_gate.data(), grad_up.data(), sums);
              });
}

}  // namespace

void bind_rows(nb::module_& m) {
  m.def("training_norm", &norm, "kernels"_a, "n_threads"_a, "x"_a.noconvert(),
        "weight"_a.noconvert(), "eps"_a, "y"_a.noconvert(), "r"_a.noconvert(),
        "Write RMSNorm of rows x (N, K) into y, and 1 / rms of each row into r (N,).");
  m.def("training_norm_gradient", &norm_gradient, "kernels"_a, "n_threads"_a, "grad"_a.noconvert(),
        "x"_a.noconvert(), "weight"_a.noconvert(), "r"_a.noconvert(), "grad_x"_a.noconvert(),
        "grad_weight"_a.noconvert(),
        "Write the gradients of x (N, K) and weight (K,) of training_norm.");
  m.def(
      "training_gate", &gate, "kernels"_a, "n_threads"_a, "gate"_a.noconvert(), "up"_a.noconvert(),
      "weight"_a.noconvert().none(), "eps"_a, "y"_a.noconvert(), "r"_a.noconvert(),
      "head_r"_a.noconvert(),
      "Write norm(silu(gate) * up) into y (N, K), with 1 / rms of rows in r (N,).\n\n"
      "`up` is (H, N, D). With head_r (N, H), not empty, it is first normalised per head. Without\n"
      "weight (K,) the rows are not normalised.");
  m.def("training_gate_gradient", &gate_gradient, "kernels"_a, "n_threads"_a, "grad"_a.noconvert(),
        "gate"_a.noconvert(), "up"_a.noconvert(), "weight"_a.noconvert().none(), "r"_a.noconvert(),
        "head_r"_a.noconvert(), "grad_gate"_a.noconvert(), "grad_up"_a.noconvert(),
        "grad_weight"_a.noconvert(),
        "Write the gradients of gate and up (N, K), and of weight (K,), of training_gate.");
}

}  // namespace yocobit
