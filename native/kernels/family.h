// One record per instruction set. A family inherits from its base what it does not replace; a new
// one is a folder in kernels/ and its name and flags in CMakeLists.txt.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/row_kernels.h"
#include "kernels/training_kernels.h"
#include "probes/loops.h"

namespace yocobit {

struct KernelFamily {
  const char* name;          // "scalar", "avx2", "avx512"
  const KernelFamily* base;  // provides the empty entries; nullptr if there are none
  bool (*is_supported)();    // by this CPU; checked after the base's
  bool is_emulated;          // for tests: compiled for other CPUs than those that it is meant for
  Kernels kernels;
  TrainingKernels training;
  RowKernels rows;
  ProbeLoops probes;
};

// All that were built, each after its base, slower ones first.
std::span<const KernelFamily* const> built_families();

// The family with its empty entries filled from its base.
KernelFamily resolve(const KernelFamily& family);

// Those that this CPU can run, resolved, slowest first; [0] is the reference. Without emulated
// ones.
const std::vector<KernelFamily>& supported_families();

// The emulated ones that this CPU can run, resolved; there are some in test builds only.
const std::vector<KernelFamily>& emulated_families();

// The one of that name, also an emulated one, or the fastest for "". Throws std::invalid_argument
// if it is not supported.
const KernelFamily& kernel_family(const std::string& name);

}  // namespace yocobit
