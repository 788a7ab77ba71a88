// The base of the family: its kernels compute batches that do not fill a tile. They are called from
// its own record, which inherits nothing: that record needs an entry for each kernel of this
// family.
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

}  // namespace
}  // namespace YOCOBIT_TARGET
}  // namespace yocobit
