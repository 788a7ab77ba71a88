// Families of tests only: one that overrides two kernels and inherits the rest, and one on top
// of it that overrides the training kernels. Both compile the generic bodies over simd/scalar.h, so
// that these are tested on every CPU.

#include "kernel_equality.h"
#include "kernels/generic/group_scaled_gemm-inl.h"
#include "kernels/generic/lut_gemm-inl.h"
#include "kernels/generic/training_kernels-inl.h"

namespace yocobit {

namespace scalar {
extern const KernelFamily kFamily;

namespace {

void lut_ternary_gemm(const BitMatrix& w, const Int8Rows& x, int group_begin, int group_end,
                      float* y, ptrdiff_t y_stride) {
  for (int token = 0; token < x.n; token += kTokenBlock) {
    const int n = x.n - token < kTokenBlock ? x.n - token : kTokenBlock;
    lut_gemm<Ternary, I16Sums<kTokenBlock>>(w, x, token, n, group_begin, group_end, y, y_stride);
  }
}

// One group of rows; codes stay in their bit fields of the byte. What is unrolled most is not
// inlined: it would take minutes to compile.
struct RowLanes : OneGroup {
  struct Codes {
    uint8_t v[kRowsPerGroup][4];
  };
  struct Sums {
    int32_t v[kRowsPerGroup];
  };
  static constexpr int kSums = 16, kInputs = 4;

  template <int kBits>
  static constexpr int position(int field) {
    return field * kBits;
  }
  static Codes load_codes(const uint8_t* codes, const uint8_t*) {
    Codes unit;
    std::memcpy(&unit, codes, sizeof unit);
    return unit;
  }
  template <int kBits>
  [[gnu::noinline]] static Codes field(Codes codes, int field) {
    for (auto& row : codes.v) {
      for (uint8_t& byte : row) byte &= ((1 << kBits) - 1) << position<kBits>(field);
    }
    return codes;
  }
  static Sums start(int32_t offset) { return splat(offset); }
  [[gnu::noinline]] static void multiply_add(Sums& sums, const Codes& codes, const int8_t* x) {
    for (int r = 0; r < kRowsPerGroup; ++r) {
      for (int i = 0; i < 4; ++i) sums.v[r] += codes.v[r][i] * x[i];
    }
  }
  static Sums int32_sums(const Sums& sums, int32_t) { return sums; }
  static Sums splat(int32_t x) {
    Sums sums;
    for (int32_t& sum : sums.v) sum = x;
    return sums;
  }
  [[gnu::noinline]] static Sums add(Sums a, const Sums& b) {
    for (int r = 0; r < kRowsPerGroup; ++r) a.v[r] += b.v[r];
    return a;
  }
  [[gnu::noinline]] static Sums times_128(Sums x) {
    for (int32_t& sum : x.v) sum *= 128;
    return x;
  }
  [[gnu::noinline]] static Floats to_floats(const Sums& x) { return from_int32(x.v); }
};

bool is_supported() { return true; }

}  // namespace
}  // namespace scalar

namespace test {

extern constinit const KernelFamily kOverridingFamily = {
    .name = "overriding",
    .base = &scalar::kFamily,
    .is_supported = scalar::is_supported,
    .kernels =
        {
            .ternary_gemm = scalar::lut_ternary_gemm,
            .group_scaled_gemm = scalar::group_scaled_gemm<scalar::RowLanes>,
        },
};

extern constinit const KernelFamily kTrainingFamily = {
    .name = "overriding training",
    .base = &kOverridingFamily,
    .is_supported = scalar::is_supported,
    .training = scalar::kGenericTrainingKernels,
};

}  // namespace test
}  // namespace yocobit
