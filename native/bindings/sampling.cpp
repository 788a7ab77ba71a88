// Drawing tokens for the sessions of a step.

#include "engine/sampling.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>

namespace nb = nanobind;
using namespace nb::literals;

namespace yocobit {
namespace {

using Logits = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

int32_t draw(TokenDrawer& drawer, const Logits& logits, double temperature, int64_t top_k,
             double top_p, double min_p, double uniform) {
  if (logits.shape(0) == 0) throw std::invalid_argument("draw: needs logits but got none");
  const Draw how = {temperature, top_k, top_p, min_p, uniform};
  return drawer.draw(logits.data(), static_cast<int64_t>(logits.shape(0)), how);
}

}  // namespace

void bind_sampling(nb::module_& m) {
  nb::class_<TokenDrawer>(m, "TokenDrawer")
      .def("__init__",
           [](TokenDrawer* self) {
             const Kernels* const* kernels = supported_kernels();
             while (kernels[1]) ++kernels;
             new (self) TokenDrawer(**kernels);
           })
      .def("draw", &draw, "logits"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a,
           "uniform"_a);
}

}  // namespace yocobit
