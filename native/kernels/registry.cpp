// Which kernels this CPU can run, asked once.

#include "kernels/row_kernels.h"
#include "kernels/training_kernels.h"

namespace yocobit {

const Kernels* const* supported_kernels() {
  static const Kernels* kernels[] = {&kScalarKernels, nullptr, nullptr, nullptr};
#ifdef YOCOBIT_X86
  static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                               __builtin_cpu_supports("f16c");
  static const bool has_avx512 =
      has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512vnni");
  if (has_avx2) kernels[1] = &kAvx2Kernels;
  if (has_avx512) kernels[2] = &kAvx512Kernels;
#endif
  return kernels;
}

const RowKernels* const* supported_row_kernels() {
  static const RowKernels* rows[] = {&kScalarRows, nullptr, nullptr, nullptr};
#ifdef YOCOBIT_X86
  const RowKernels* variants[] = {&kAvx2Rows, &kAvx512Rows};
  for (int i = 1; supported_kernels()[i]; ++i) rows[i] = variants[i - 1];
#endif
  return rows;
}

const TrainingKernels* const* supported_training_kernels() {
  static const TrainingKernels* training[] = {&kScalarTraining, nullptr, nullptr, nullptr};
#ifdef YOCOBIT_X86
  const TrainingKernels* variants[] = {&kAvx2Training, &kAvx512Training};
  for (int i = 1; supported_kernels()[i]; ++i) training[i] = variants[i - 1];
#endif
  return training;
}

}  // namespace yocobit
