// kernel_equality [--print]: every kernel of every family that this CPU supports, of the test-only
// families too, against its contract and against the checksums below, which hold on every CPU.
// --print writes them instead of comparing.

#include "kernel_equality.h"

#include <array>
#include <bit>

namespace yocobit::test {
namespace {

struct Test {
  const char* name;
  uint64_t (*run)(const KernelFamily& family);
  uint64_t checksum;
};

const Test kTests[] = {
    {"ternary_gemm", ternary_gemm, 0x0dace855b89c1d5b},
    {"sign_gemm", sign_gemm, 0x4db0b63e001aa440},
    {"int8_gemm", int8_gemm, 0x5b9dd3988089b42d},
    {"int4_gemm", int4_gemm, 0x0b5c67b09d8d8697},
    {"group_scaled_gemm", group_scaled_gemm, 0x46e88d9071b02293},
    {"dense_gemm", dense_gemm, 0x40bd5b7ebbd38b59},
    {"quantize_rows", quantize_rows, 0xffc3101fb0362882},
    {"quantize_grouped_rows", quantize_grouped_rows, 0xbc0a301a1c1e6215},
    {"quantize_special_rows", quantize_special_rows, 0xb43de1a675c742d8},
    {"elementwise", elementwise, 0xde0540a892560a66},
    {"gelu", gelu, 0x83b0431fd453996b},
    {"retention", retention, 0x786db05c8c2e760f},
    {"kv_rows", kv_rows, 0x8b7b8139dd149569},
    {"attention", attention, 0x8029d4fdff9ed33a},
    {"attention_together", attention_together, 0xb0e2fb914301d300},
    {"largest_attention", largest_attention, 0xa6ee5c14783182a5},
    {"training_forward", training_forward, 0x9583038d6b997292},
    {"training_backward", training_backward, 0x614fc14dde6b829e},
    {"largest_gradients", largest_gradients, 0x8453ec08b46c7e45},
    {"row_kernels", row_kernels, 0x0231977687dbda9f},
};

void run(const KernelFamily& family, bool is_printing) {
  for (const Test& test : kTests) {
    const uint64_t checksum = test.run(family);
    if (is_printing) {
      std::printf("    {\"%s\", %s, 0x%016llx},\n", test.name, test.name,
                  static_cast<unsigned long long>(checksum));
    } else if (checksum != test.checksum) {
      std::printf("%s: %s must have checksum %016llx but has %016llx\n", family.name, test.name,
                  static_cast<unsigned long long>(test.checksum),
                  static_cast<unsigned long long>(checksum));
      std::exit(1);
    }
  }
  std::printf("%s: good\n", family.name);
}

template <typename Table>
bool is_complete(const Table& table) {
  using Entries = std::array<void (*)(), sizeof(Table) / sizeof(void (*)())>;
  const Entries entries = std::bit_cast<Entries>(table);
  return std::find(entries.begin(), entries.end(), nullptr) == entries.end();
}

// Also of families that this CPU does not support.
void check_completeness() {
  for (const KernelFamily* family : built_families()) {
    const KernelFamily resolved = resolve(*family);
    check(is_complete(resolved.kernels) && is_complete(resolved.training) &&
              is_complete(resolved.rows) && resolved.probes.read && resolved.probes.multiply_add,
          resolved, "must have or inherit every kernel");
  }
}

void check_inheritance() {
  const KernelFamily& scalar = supported_families()[0];
  const KernelFamily overriding = resolve(kOverridingFamily), training = resolve(kTrainingFamily);
  check(overriding.kernels.ternary_gemm == kOverridingFamily.kernels.ternary_gemm, overriding,
        "must keep its own kernel");
  check(overriding.kernels.sign_gemm == scalar.kernels.sign_gemm &&
            overriding.training.pack == scalar.training.pack &&
            overriding.rows.gate == scalar.rows.gate && overriding.probes.read,
        overriding, "must inherit the rest");
  check(training.kernels.ternary_gemm == kOverridingFamily.kernels.ternary_gemm, training,
        "must inherit from the base of its base");
}

}  // namespace
}  // namespace yocobit::test

int main(int n_arguments, char** arguments) {
  using namespace yocobit;
  const bool is_printing = n_arguments > 1 && !std::strcmp(arguments[1], "--print");
  test::check_completeness();
  test::check_inheritance();
  std::vector<KernelFamily> families = supported_families();
  families.insert(families.end(), emulated_families().begin(), emulated_families().end());
  families.push_back(resolve(test::kOverridingFamily));
  families.push_back(resolve(test::kTrainingFamily));
  for (const KernelFamily& family : families) test::run(family, is_printing);
}
