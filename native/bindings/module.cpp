// The module yocobit._native. One file a class; this one lists them.

#include <nanobind/nanobind.h>

namespace nb = nanobind;

namespace yocobit {

void bind_tables(nb::module_& m);
void bind_engine(nb::module_& m);
void bind_session(nb::module_& m);
void bind_sampler(nb::module_& m);
void bind_gemms(nb::module_& m);
void bind_kernels(nb::module_& m);
void bind_training(nb::module_& m);
void bind_rows(nb::module_& m);
void bind_benchmark(nb::module_& m);

NB_MODULE(_native, m) {
  m.doc() = "The native engine; use it through yocobit.Engine.";
  bind_tables(m);
  bind_engine(m);
  bind_session(m);
  bind_sampler(m);
  bind_gemms(m);
  bind_kernels(m);
  bind_training(m);
  bind_rows(m);
  bind_benchmark(m);
}

}  // namespace yocobit
