// Which kernels this CPU can run, asked once.

#include "kernels.h"

namespace yocobit {

const Kernels* const* supported_kernels() {
  static const Kernels* kernels[] = {&kScalarKernels, nullptr, nullptr};
#ifdef YOCOBIT_HAVE_AVX2
  static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                               __builtin_cpu_supports("f16c");
  if (has_avx2) kernels[1] = &kAvx2Kernels;
#endif
  return kernels;
}

}  // namespace yocobit
