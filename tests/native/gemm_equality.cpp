// GEMM kernels: integers exactly, floating point within its rounding.
//
// Letters:  M output features   K input features   N tokens

#include <algorithm>

#include "kernel_equality.h"

namespace yocobit::test {
namespace {

int value_of(Fill fill, Random& random, int low, int high) {
  switch (fill) {
    case Fill::largest:
      return high;
    case Fill::smallest:
      return low;
    case Fill::zeros:
      return 0;
    default:
      return random.between(low, high);
  }
}

struct Shape {
  int m, k, n;
};

// M of 1, whole and partial groups; smallest K, K off the blocks, K of several passes; N around
// every tile size.
const Shape kShapes[] = {
    {1, 8, 1},      {7, 128, 2},   {8, 200, 3},    {20, 256, 4},    {77, 136, 5},   {33, 256, 8},
    {8, 1408, 9},   {77, 264, 12}, {40, 384, 16},  {20, 520, 17},   {64, 264, 31},  {33, 128, 32},
    {100, 264, 33}, {77, 128, 69}, {45, 2200, 47}, {33, 1160, 130}, {2100, 136, 40}};

void low_bit_case(const KernelFamily& family, bool is_ternary, const Shape& shape, Fill w_fill,
                  Fill x_fill, bool has_row_scales, Checksum& checksum) {
  const auto [M, K, N] = shape;
  const int block = is_ternary ? kTernaryBlock : kSignBlock, bits = is_ternary ? 2 : 1;
  const int n_blocks = (K + block - 1) / block, groups = (M + 7) / 8;
  const int stride = (n_blocks * block + kSignBlock - 1) / kSignBlock * kSignBlock;
  Random random(static_cast<uint32_t>(M * 31 + K * 7 + N));
  std::vector<int> w(size_t(M) * K);
  Aligned<uint8_t> codes(size_t(groups) * n_blocks * kRowsPerGroup * kBlockBytes);
  if (is_ternary) std::memset(codes.data(), 0x55, codes.size());  // padding is weight 0
  for (int m = 0; m < M; ++m) {
    for (int k = 0; k < K; ++k) {
      int value = value_of(w_fill, random, -1, 1);
      if (!is_ternary) value = value > 0 || (value == 0 && k % 2) ? 1 : -1;
      w[size_t(m) * K + k] = value;
      const size_t at =
          ((size_t(m / 8) * n_blocks + k / block) * 8 + m % 8) * kBlockBytes + k % kBlockBytes;
      const int shift = k % block / kBlockBytes * bits;
      codes[at] &= static_cast<uint8_t>(~(((1 << bits) - 1) << shift));
      codes[at] |= static_cast<uint8_t>((is_ternary ? value + 1 : value > 0) << shift);
    }
  }
  Aligned<int8_t> x(size_t(N) * stride);
  std::vector<float> x_scales(N), row_scales(M);
  std::vector<int32_t> sums(N);
  for (int n = 0; n < N; ++n) {
    x_scales[n] = 0.5f + 0.001f * static_cast<float>(n);
    for (int k = 0; k < K; ++k) {
      x[size_t(n) * stride + k] = static_cast<int8_t>(value_of(x_fill, random, -127, 127));
      sums[n] += x[size_t(n) * stride + k];
    }
  }
  for (float& scale : row_scales) scale = random.number();
  const float scale = 0.037f;
  const BitMatrix matrix = {.codes = codes.data(),
                            .m = M,
                            .n_blocks = n_blocks,
                            .scale = scale,
                            .row_scales = has_row_scales ? row_scales.data() : nullptr};
  const Int8Rows rows = {
      .codes = x.data(), .scales = x_scales.data(), .sums = sums.data(), .n = N, .stride = stride};
  const ptrdiff_t y_stride = M + 3;
  std::vector<float> y(size_t(N) * y_stride, -7.0f);
  const auto gemm = is_ternary ? family.kernels.ternary_gemm : family.kernels.sign_gemm;
  const int middle = groups / 3;  // as two threads would share it
  gemm(matrix, rows, 0, middle, y.data(), y_stride);
  gemm(matrix, rows, middle, groups, y.data(), y_stride);
  for (int n = 0; n < N; ++n) {
    for (int m = 0; m < M; ++m) {
      int64_t sum = 0;
      for (int k = 0; k < K; ++k) sum += w[size_t(m) * K + k] * x[size_t(n) * stride + k];
      const float expected =
          static_cast<float>(sum) * (x_scales[n] * (has_row_scales ? row_scales[m] : scale));
      check(y[n * y_stride + m] == expected, family, "a low-bit GEMM must be exact");
    }
    for (int m = M; m < y_stride; ++m) {
      check(y[n * y_stride + m] == -7.0f, family, "a low-bit GEMM must write M columns only");
    }
  }
  checksum.add(y);
}

uint64_t low_bit_gemm(const KernelFamily& family, bool is_ternary) {
  Checksum checksum;
  for (const Shape& shape : kShapes) {
    low_bit_case(family, is_ternary, shape, Fill::random, Fill::random, false, checksum);
    low_bit_case(family, is_ternary, shape, Fill::random, Fill::random, true, checksum);
  }
  // Where sums are largest: int16 sums over blocks must be widened in time.
  for (const Shape& shape : {Shape{33, 4096, 1}, Shape{20, 4096, 4}, Shape{33, 4096, 32}}) {
    for (const Fill w : {Fill::largest, Fill::smallest}) {
      for (const Fill x : {Fill::largest, Fill::smallest}) {
        low_bit_case(family, is_ternary, shape, w, x, false, checksum);
      }
    }
    low_bit_case(family, is_ternary, shape, Fill::random, Fill::zeros, false, checksum);
  }
  return checksum.value();
}

// N rows of int16 activations.
struct Activations {
  Activations(int n, int k, Fill fill, Random& random)
      : stride((k + kInt4Block - 1) / kInt4Block * kInt4Block),
        codes(size_t(n) * stride),
        sums(size_t(n) * stride / kInt4Block),
        scales(n) {
    for (int i = 0; i < n; ++i) {
      scales[i] = 0.25f + 0.01f * static_cast<float>(i);
      for (int j = 0; j < k; ++j) {
        codes[size_t(i) * stride + j] =
            static_cast<int16_t>(value_of(fill, random, -kInt16Max, kInt16Max));
        sums[(size_t(i) * stride + j) / kInt4Block] += codes[size_t(i) * stride + j];
      }
    }
    rows = {.codes = codes.data(),
            .sums = sums.data(),
            .scales = scales.data(),
            .n = n,
            .stride = stride};
  }

  int stride;
  Aligned<int16_t> codes;
  std::vector<int32_t> sums;
  std::vector<float> scales;
  Int16Rows rows;
};

void int8_case(const KernelFamily& family, const Shape& shape, Fill fill, Checksum& checksum) {
  const auto [M, K, N] = shape;
  Random random(static_cast<uint32_t>(K + N));
  Aligned<int8_t> w(size_t(M) * K);
  for (size_t i = 0; i < w.size(); ++i) {
    w[i] = static_cast<int8_t>(value_of(fill, random, -127, 127));
  }
  Activations x(N, K, fill == Fill::smallest ? Fill::largest : fill, random);
  const std::vector<float> scales = random.numbers(M);
  const DenseMatrix matrix = {
      .values = w.data(), .scales = scales.data(), .type = FloatType::i8, .m = M, .k = K};
  std::vector<float> y(size_t(N) * M);
  family.kernels.int8_gemm(matrix, x.rows, 0, M / 2, y.data(), M);
  family.kernels.int8_gemm(matrix, x.rows, M / 2, M, y.data(), M);
  for (int n = 0; n < N; ++n) {
    for (int m = 0; m < M; ++m) {
      int64_t sum = 0;
      for (int k = 0; k < K; ++k) sum += w[size_t(m) * K + k] * x.codes[size_t(n) * x.stride + k];
      const float expected = static_cast<float>(sum) * (x.scales[n] * scales[m]);
      check(y[size_t(n) * M + m] == expected, family, "int8_gemm must be exact");
    }
  }
  checksum.add(y);
}

// bits, first and step of codes, and columns of a scale (0: row scales)
struct GroupScaledKind {
  int bits, first, step, group_columns;
};

// Parts, sums and scales of N rows of grouped activations.
struct GroupedActivations {
  GroupedActivations(int n, int k, int n_parts, Fill fill, Random& random)
      : stride((k + kSignBlock - 1) / kSignBlock * kSignBlock),
        integers(size_t(n) * stride),
        codes(size_t(n) * n_parts * stride),
        sums(size_t(n) * stride / kActivationGroup),
        scales(sums.size()) {
    const int most = n_parts == 1 ? 127 : kInt16Max;
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < k; ++j) {
        const int value = value_of(fill, random, -most, most);
        const size_t at = size_t(i) * stride + j, part = size_t(i) * n_parts * stride + j;
        integers[at] = value;
        sums[at / kActivationGroup] -= value;
        codes[part] = static_cast<int8_t>(n_parts == 1 ? value : value >> 7);
        if (n_parts == 2) codes[part + stride] = static_cast<int8_t>(value & 127);
      }
    }
    for (float& scale : scales) scale = 1.5f + random.number();
    rows = {.codes = codes.data(),
            .scales = scales.data(),
            .sums = sums.data(),
            .n = n,
            .stride = stride,
            .n_parts = n_parts};
  }

  int stride;
  std::vector<int> integers;
  Aligned<int8_t> codes;
  std::vector<int32_t> sums;
  std::vector<float> scales;
  GroupedRows rows;
};

void group_scaled_case(const KernelFamily& family, const GroupScaledKind& kind, int n_parts,
                       const Shape& shape, Fill w_fill, Fill x_fill, Checksum& checksum) {
  const auto [M, K, N] = shape;
  const int block = kBlockBytes * 8 / kind.bits, n_blocks = (K + block - 1) / block;
  const int groups = (M + 7) / 8, columns = n_blocks * block;
  const int per_scale = kind.group_columns ? kind.group_columns : columns;
  Random random(static_cast<uint32_t>(M * 31 + K * 7 + N));
  std::vector<int> w(size_t(groups) * 8 * columns);
  Aligned<uint8_t> codes(size_t(groups) * n_blocks * kRowsPerGroup * kBlockBytes);
  for (int m = 0; m < groups * 8; ++m) {
    for (int k = 0; k < columns; ++k) {
      const int code = value_of(w_fill, random, 0, (1 << kind.bits) - 1), b = k % kBlockBytes;
      w[size_t(m) * columns + k] = kind.first + kind.step * code;
      const size_t unit = (size_t(m / 8) * n_blocks + k / block) * 8 + b / 4;
      codes[(unit * 8 + m % 8) * 4 + b % 4] |=
          static_cast<uint8_t>(code << (k % block / kBlockBytes * kind.bits));
    }
  }
  const GroupedActivations x(N, K, n_parts, x_fill, random);
  // Halves of 1 to 2: exponent 15 and any mantissa.
  std::vector<uint16_t> scales(size_t(groups) * 8 * columns / per_scale);
  for (uint16_t& scale : scales) scale = static_cast<uint16_t>(0x3c00 | random.between(0, 1023));
  const std::vector<float> row_scales = random.numbers(M);
  const GroupScaledMatrix matrix = {.codes = codes.data(),
                                    .scales = kind.group_columns ? scales.data() : nullptr,
                                    .row_scales = kind.group_columns ? nullptr : row_scales.data(),
                                    .m = M,
                                    .n_blocks = n_blocks,
                                    .bits = kind.bits,
                                    .group_columns = kind.group_columns,
                                    .first = kind.first,
                                    .step = kind.step};
  const ptrdiff_t y_stride = M + 3;
  std::vector<float> y(size_t(N) * y_stride, -7.0f);
  const int middle = groups / 3;  // as two threads would share it
  family.kernels.group_scaled_gemm(matrix, x.rows, 0, middle, y.data(), y_stride);
  family.kernels.group_scaled_gemm(matrix, x.rows, middle, groups, y.data(), y_stride);
  for (int n = 0; n < N; ++n) {
    for (int m = 0; m < M; ++m) {
      float total = 0.0f;
      for (int g = 0; g < columns / per_scale; ++g) {
        float t = 0.0f;
        for (int begin = g * per_scale; begin < (g + 1) * per_scale; begin += kActivationGroup) {
          int32_t sum = 0;
          for (int k = begin; k < begin + kActivationGroup; ++k) {
            sum += w[size_t(m) * columns + k] * x.integers[size_t(n) * x.stride + k];
          }
          const size_t at = (size_t(n) * x.stride + begin) / kActivationGroup;
          t = std::fma(x.scales[at], static_cast<float>(sum), t);
        }
        if (!kind.group_columns) {
          total = row_scales[m] * t;
          continue;
        }
        const size_t at = (size_t(m / 8) * (columns / per_scale) + g) * 8 + m % 8;
        total = std::fma(1.0f + static_cast<float>(scales[at] & 1023) * 0x1p-10f, t, total);
      }
      check(y[n * y_stride + m] == total, family, "group_scaled_gemm must be exact in groups");
    }
    for (int m = M; m < y_stride; ++m) {
      check(y[n * y_stride + m] == -7.0f, family, "group_scaled_gemm must write M columns only");
    }
  }
  checksum.add(y);
}

}  // namespace

uint64_t group_scaled_gemm(const KernelFamily& family) {
  Checksum checksum;
  for (const GroupScaledKind& kind :
       {GroupScaledKind{2, -1, 1, 128}, GroupScaledKind{2, -1, 1, 64}, GroupScaledKind{2, -1, 1, 0},
        GroupScaledKind{1, -1, 2, 128}, GroupScaledKind{2, -3, 2, 128}}) {
    for (const int n_parts : {1, 2}) {
      for (const Shape& shape : kShapes) {
        if (shape.m > 1000) continue;
        group_scaled_case(family, kind, n_parts, shape, Fill::random, Fill::random, checksum);
      }
      // Where sums are largest.
      for (const Shape& shape : {Shape{20, 1024, 1}, Shape{20, 1024, 4}, Shape{20, 1024, 32}}) {
        for (const Fill w : {Fill::largest, Fill::smallest}) {
          for (const Fill x : {Fill::largest, Fill::smallest}) {
            group_scaled_case(family, kind, n_parts, shape, w, x, checksum);
          }
        }
        group_scaled_case(family, kind, n_parts, shape, Fill::random, Fill::zeros, checksum);
      }
    }
  }
  return checksum.value();
}

uint64_t ternary_gemm(const KernelFamily& family) { return low_bit_gemm(family, true); }
uint64_t sign_gemm(const KernelFamily& family) { return low_bit_gemm(family, false); }

uint64_t int8_gemm(const KernelFamily& family) {
  Checksum checksum;
  for (const Shape& shape :
       {Shape{1, 8, 1}, Shape{4, 16, 2}, Shape{11, 264, 5}, Shape{9, 2560, 4}, Shape{5, 8200, 3},
        Shape{70, 8, 16}, Shape{37, 1096, 17}, Shape{9, 2184, 33}, Shape{34, 136, 130},
        Shape{6, 48, 1}, Shape{9, 2584, 3}, Shape{3, 8200, 32}, Shape{3, 16392, 16},
        Shape{3, 140000, 1}}) {  // sums beyond int32
    for (const Fill fill : {Fill::random, Fill::largest, Fill::smallest, Fill::zeros}) {
      int8_case(family, shape, fill, checksum);
    }
  }
  return checksum.value();
}

uint64_t int4_gemm(const KernelFamily& family) {
  Checksum checksum;
  for (const Shape& shape : {Shape{1, 64, 1}, Shape{8, 128, 4}, Shape{20, 640, 5},
                             Shape{77, 64, 16}, Shape{33, 1088, 17}, Shape{16, 2176, 33},
                             Shape{41, 128, 130}, Shape{3, 8256, 32}, Shape{3, 16448, 16}}) {
    for (const Fill fill : {Fill::random, Fill::largest, Fill::smallest, Fill::zeros}) {
      const auto [M, K, N] = shape;
      const int n_blocks = K / kInt4Block, groups = (M + 7) / 8;
      Random random(static_cast<uint32_t>(M + K));
      Aligned<uint8_t> codes(size_t(groups) * n_blocks * kRowsPerGroup * kBlockBytes);
      std::vector<uint16_t> scales(size_t(groups) * n_blocks * kRowsPerGroup);
      for (size_t i = 0; i < codes.size(); ++i) {
        codes[i] = static_cast<uint8_t>(value_of(fill, random, 0, 255));
      }
      // Halves of 1 to 2: exponent 15 and any mantissa.
      for (uint16_t& scale : scales)
        scale = static_cast<uint16_t>(0x3c00 | random.between(0, 1023));
      Activations x(N, K, fill, random);
      const Int4Matrix matrix = {
          .codes = codes.data(), .scales = scales.data(), .m = M, .n_blocks = n_blocks};
      std::vector<float> y(size_t(N) * M);
      family.kernels.int4_gemm(matrix, x.rows, 0, groups, y.data(), M);
      for (int n = 0; n < N; ++n) {
        for (int m = 0; m < M; ++m) {
          float total = 0.0f;
          for (int block = 0; block < n_blocks; ++block) {
            const size_t at = (size_t(m / 8) * n_blocks + block) * 8 + m % 8;
            int32_t sum = 0;
            for (int k = 0; k < kInt4Block; ++k) {
              const int code = codes[at * kBlockBytes + k % 32] >> (k / 32 * 4) & 15;
              sum += (code - 8) * x.codes[size_t(n) * x.stride + block * kInt4Block + k];
            }
            const float scale = 1.0f + static_cast<float>(scales[at] & 1023) * 0x1p-10f;
            total = std::fma(static_cast<float>(sum), scale, total);
          }
          check(y[size_t(n) * M + m] == total * x.scales[n], family, "int4_gemm must be exact");
        }
      }
      checksum.add(y);
    }
  }
  return checksum.value();
}

uint64_t dense_gemm(const KernelFamily& family) {
  Checksum checksum;
  for (const Shape& shape : {Shape{1, 8, 1}, Shape{11, 136, 4}, Shape{20, 264, 7}}) {
    for (const FloatType type : {FloatType::f32, FloatType::f16}) {
      const auto [M, K, N] = shape;
      Random random(static_cast<uint32_t>(M * K));
      std::vector<float> w(size_t(M) * K);
      Aligned<uint16_t> halves(w.size());
      for (size_t i = 0; i < w.size(); ++i) {  // what both types hold
        const int mantissa = random.between(0, 1023), sign = random.between(0, 1);
        w[i] = (sign ? -1.0f : 1.0f) * (1.0f + static_cast<float>(mantissa) * 0x1p-10f);
        halves[i] = static_cast<uint16_t>(sign << 15 | 0x3c00 | mantissa);
      }
      const std::vector<float> x = random.numbers(size_t(N) * K);
      const DenseMatrix matrix = {
          .values = type == FloatType::f32 ? static_cast<const void*>(w.data()) : halves.data(),
          .scales = nullptr,
          .type = type,
          .m = M,
          .k = K};
      std::vector<float> y(size_t(N) * M);
      family.kernels.dense_gemm(matrix, x.data(), N, 0, M, y.data(), M);
      for (int n = 0; n < N; ++n) {
        for (int m = 0; m < M; ++m) {
          float lanes[kLanes] = {};
          for (int k = 0; k < K; ++k) {
            float& lane = lanes[k % kLanes];
            lane = std::fma(x[size_t(n) * K + k], w[size_t(m) * K + k], lane);
          }
          const float sum = ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
                            ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
          check(y[size_t(n) * M + m] == sum, family, "dense_gemm must sum in eight lanes");
        }
      }
      checksum.add(y);
    }
  }
  return checksum.value();
}

}  // namespace yocobit::test
