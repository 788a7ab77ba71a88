// One record per instruction set. A family inherits from its base what it does not replace; a new
// one is a folder in kernels/, its files in CMakeLists.txt and a line in registry.cpp.
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
  const KernelFamily* base;  // of whose entries empty ones are taken; nullptr: there are none
  bool (*is_supported)();    // by this CPU; checked after the base's
  Kernels kernels;
  TrainingKernels training;
  RowKernels rows;
  ProbeLoops probes;
};

// All that were built, each after its base, slower ones first.
std::span<const KernelFamily* const> built_families();

// The family with its empty entries filled from its base.
KernelFamily resolve(const KernelFamily& family);

// Those that this CPU can run, resolved, slowest first; [0] is the reference.
const std::vector<KernelFamily>& supported_families();

// The one of that name, or the fastest for "". Throws std::invalid_argument if it is not supported.
const KernelFamily& kernel_family(const std::string& name);

}  // namespace yocobit
