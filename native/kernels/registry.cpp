// The list of kernel families, and what this CPU supports of it.

#include <array>
#include <bit>
#include <stdexcept>

#include "kernels/family.h"

namespace yocobit {

namespace scalar {
extern const KernelFamily kFamily;
}
namespace avx2 {
extern const KernelFamily kFamily;
}
namespace avx512 {
extern const KernelFamily kFamily;
}

namespace {

const KernelFamily* const kFamilies[] = {
    &scalar::kFamily,
#ifdef YOCOBIT_HAS_AVX2
    &avx2::kFamily,
#endif
#ifdef YOCOBIT_HAS_AVX512
    &avx512::kFamily,
#endif
};

// A table of function pointers with those of its base where it has none.
template <typename Table>
Table inherit(const Table& own, const Table& base) {
  using Entries = std::array<void (*)(), sizeof(Table) / sizeof(void (*)())>;
  Entries entries = std::bit_cast<Entries>(own);
  const Entries inherited = std::bit_cast<Entries>(base);
  for (size_t i = 0; i < entries.size(); ++i) {
    if (!entries[i]) entries[i] = inherited[i];
  }
  return std::bit_cast<Table>(entries);
}

bool is_supported(const KernelFamily& family) {
  return (!family.base || is_supported(*family.base)) && family.is_supported();
}

}  // namespace

std::span<const KernelFamily* const> built_families() { return kFamilies; }

KernelFamily resolve(const KernelFamily& family) {
  if (!family.base) return family;
  const KernelFamily base = resolve(*family.base);
  KernelFamily resolved = family;
  resolved.kernels = inherit(family.kernels, base.kernels);
  resolved.training = inherit(family.training, base.training);
  resolved.rows = inherit(family.rows, base.rows);
  if (!resolved.probes.read) resolved.probes.read = base.probes.read;
  if (!resolved.probes.multiply_add) resolved.probes.multiply_add = base.probes.multiply_add;
  return resolved;
}

const std::vector<KernelFamily>& supported_families() {
  static const std::vector<KernelFamily> families = [] {
    std::vector<KernelFamily> supported;
    for (const KernelFamily* family : kFamilies) {
      if (is_supported(*family)) supported.push_back(resolve(*family));
    }
    return supported;
  }();
  return families;
}

const KernelFamily& kernel_family(const std::string& name) {
  if (name.empty()) return supported_families().back();
  for (const KernelFamily& family : supported_families()) {
    if (name == family.name) return family;
  }
  throw std::invalid_argument("kernels '" + name + "' are not supported by this CPU");
}

}  // namespace yocobit
