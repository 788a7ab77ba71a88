// The base of the family: its kernels compute batches that do not fill a tile.
#pragma once

#include "kernels/family.h"
#include "simd/target.h"

namespace yocobit {

#ifdef YOCOBIT_EMULATED
namespace scalar {
extern const KernelFamily kFamily;
}
#else
namespace avx512 {
extern const KernelFamily kFamily;
}
#endif

namespace YOCOBIT_TARGET {
namespace {

#ifdef YOCOBIT_EMULATED
constexpr const KernelFamily& kBase = scalar::kFamily;
#else
constexpr const KernelFamily& kBase = avx512::kFamily;
#endif

// With the entries that kBase inherits. Set by is_supported().
KernelFamily resolved_base;

}  // namespace
}  // namespace YOCOBIT_TARGET
}  // namespace yocobit
