// The list of kernel families, and what this CPU supports of it.

#include <array>
#include <bit>
#include <stdexcept>

#include "kernels/family.h"

namespace yocobit {

// families.inc: YOCOBIT_FAMILY(name) for each that is built, written by CMake.
#define YOCOBIT_FAMILY(name)         \
  namespace name {                   \
  extern const KernelFamily kFamily; \
  }
#include "kernels/families.inc"
#undef YOCOBIT_FAMILY

namespace {

const KernelFamily* const kFamilies[] = {
#define YOCOBIT_FAMILY(name) &name::kFamily,
#include "kernels/families.inc"
#undef YOCOBIT_FAMILY
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

std::vector<KernelFamily> runnable(bool emulated) {
  std::vector<KernelFamily> families;
  for (const KernelFamily* family : kFamilies) {
    if (family->is_emulated == emulated && is_supported(*family)) {
      families.push_back(resolve(*family));
    }
  }
  return families;
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
  static const std::vector<KernelFamily> families = runnable(/*emulated=*/false);
  return families;
}

const std::vector<KernelFamily>& emulated_families() {
  static const std::vector<KernelFamily> families = runnable(/*emulated=*/true);
  return families;
}

const KernelFamily& kernel_family(const std::string& name) {
  if (name.empty()) return supported_families().back();
  for (const auto* families : {&supported_families(), &emulated_families()}) {
    for (const KernelFamily& family : *families) {
      if (name == family.name) return family;
    }
  }
  throw std::invalid_argument("kernels '" + name + "' are not supported by this CPU");
}

}  // namespace yocobit
