// Single kernels as Python functions, for tests that compare every family with NumPy.

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "bindings/arrays.h"
#include "engine/kv_cache.h"
#include "kernels/family.h"
#include "model/mixer_spec.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace yocobit {
namespace {

const Kernels& kernels_named(const std::string& name) { return kernel_family(name).kernels; }

// codes (groups, blocks, 8, 32), x (N, K) int8 -> (N, M) with all scales 1, or with those of rows.
Floats low_bit_gemm(const std::string& name, const Array<const uint8_t, 4>& codes, int m,
                    const Array<const int8_t, 2>& x, bool is_ternary,
                    const std::optional<Array<const float, 1>>& row_scales) {
  const Kernels& kernels = kernels_named(name);
  const int block = is_ternary ? kTernaryBlock : kSignBlock;
  const int N = x.shape(0), K = x.shape(1), n_blocks = codes.shape(1);
  require(codes.shape(2) == kRowsPerGroup && codes.shape(3) == kBlockBytes,
          "codes must be (groups, blocks, 8, 32)");
  require(m > 0 && static_cast<size_t>(m + 7) / 8 == codes.shape(0), "codes must hold M rows");
  require(!row_scales || row_scales->shape(0) == static_cast<size_t>(m),
          "row_scales must be one for each of M rows");
  require(K <= n_blocks * block, "x must not have more values than the codes have columns");
  const int stride = static_cast<int>(round_up(n_blocks * block, kSignBlock));
  Buffer<int8_t> padded = make_buffer<int8_t>(static_cast<size_t>(N) * stride);
  std::vector<float> scales(N, 1.0f);
  std::vector<int32_t> sums(N, 0);
  std::memset(padded.get(), 0, static_cast<size_t>(N) * stride);
  for (int n = 0; n < N; ++n) {
    std::memcpy(&padded[static_cast<size_t>(n) * stride], x.data() + static_cast<size_t>(n) * K, K);
    for (int k = 0; k < K; ++k) sums[n] += x.data()[static_cast<size_t>(n) * K + k];
  }
  const BitMatrix w = {.codes = codes.data(),
                       .m = m,
                       .n_blocks = n_blocks,
                       .scale = 1.0f,
                       .row_scales = row_scales ? row_scales->data() : nullptr};
  const Int8Rows rows = {.codes = padded.get(),
                         .scales = scales.data(),
                         .sums = sums.data(),
                         .n = N,
                         .stride = stride};
  Floats y = new_array({static_cast<size_t>(N), static_cast<size_t>(m)});
  const auto matmul = is_ternary ? kernels.ternary_gemm : kernels.sign_gemm;
  matmul(w, rows, 0, static_cast<int>(codes.shape(0)), y.data(), m);
  return y;
}

// values (M, K) as raw f32 or f16; x (N, K) -> (N, M).
template <typename T>
Floats dense_gemm(const std::string& name, const Array<const T, 2>& values,
                  const Array<const float, 2>& x) {
  const size_t M = values.shape(0), K = values.shape(1), N = x.shape(0);
  require(K % kLanes == 0 && x.shape(1) == K, "K must be a multiple of 8 and the same in both");
  const DenseMatrix w = {.values = values.data(),
                         .scales = nullptr,
                         .type = sizeof(T) == 4 ? FloatType::f32 : FloatType::f16,
                         .m = static_cast<int>(M),
                         .k = static_cast<int>(K)};
  Floats y = new_array({N, M});
  kernels_named(name).dense_gemm(w, x.data(), N, 0, M, y.data(), M);
  return y;
}

// x (N, K) int16 as rows with all scales 1, padded.
struct Int16Input {
  explicit Int16Input(const Array<const int16_t, 2>& x) : ones(x.shape(0), 1.0f) {
    const size_t N = x.shape(0), K = x.shape(1), stride = round_up(K, kInt4Block);
    codes = make_buffer<int16_t>(N * stride);
    std::memset(codes.get(), 0, N * stride * sizeof(int16_t));
    sums.resize(N * stride / kInt4Block);
    for (size_t n = 0; n < N; ++n) {
      std::memcpy(&codes[n * stride], x.data() + n * K, K * sizeof(int16_t));
      for (size_t k = 0; k < stride; ++k) {
        sums[(n * stride + k) / kInt4Block] += codes[n * stride + k];
      }
    }
    rows = {.codes = codes.get(),
            .sums = sums.data(),
            .scales = ones.data(),
            .n = static_cast<int>(N),
            .stride = static_cast<int>(stride)};
  }

  Buffer<int16_t> codes;
  std::vector<int32_t> sums;
  std::vector<float> ones;
  Int16Rows rows;
};

// values (M, K) int8, x (N, K) int16 -> (N, M) with all scales 1.
Floats int8_gemm(const std::string& name, const Array<const int8_t, 2>& values,
                 const Array<const int16_t, 2>& x) {
  const size_t M = values.shape(0), K = values.shape(1), N = x.shape(0);
  require(K % kLanes == 0 && x.shape(1) == K, "K must be a multiple of 8 and the same in both");
  const Int16Input input(x);
  const std::vector<float> ones(M, 1.0f);
  const DenseMatrix w = {.values = values.data(),
                         .scales = ones.data(),
                         .type = FloatType::i8,
                         .m = static_cast<int>(M),
                         .k = static_cast<int>(K)};
  Floats y = new_array({N, M});
  kernels_named(name).int8_gemm(w, input.rows, 0, static_cast<int>(M), y.data(), M);
  return y;
}

// codes (groups, blocks, 8, 32), scales (groups, blocks, 8) float16; x (N, K) int16 -> (N, M).
Floats int4_gemm(const std::string& name, const Array<const uint8_t, 4>& codes,
                 const Array<const uint16_t, 3>& scales, int m, const Array<const int16_t, 2>& x) {
  const size_t groups = codes.shape(0), blocks = codes.shape(1), N = x.shape(0);
  require(codes.shape(2) == kRowsPerGroup && codes.shape(3) == kBlockBytes,
          "codes must be (groups, blocks, 8, 32)");
  require(scales.shape(0) == groups && scales.shape(1) == blocks && scales.shape(2) == 8,
          "scales must be (groups, blocks, 8)");
  require(m > 0 && static_cast<size_t>(m + 7) / 8 == groups, "codes must hold M rows");
  const Int16Input input(x);
  require(static_cast<size_t>(input.rows.stride) == blocks * kInt4Block,
          "x must have as many values as the codes have columns");
  const Int4Matrix w = {
      .codes = codes.data(), .scales = scales.data(), .m = m, .n_blocks = static_cast<int>(blocks)};
  Floats y = new_array({N, static_cast<size_t>(m)});
  kernels_named(name).int4_gemm(w, input.rows, 0, static_cast<int>(groups), y.data(), m);
  return y;
}

// codes (groups, blocks, 8, 32) in the order of GroupScaledMatrix, scales (groups, n, 8) float16 or
// row_scales (M,); x (N, parts, K) int8, x_scales (N, K / 32) -> (N, M), 0 outside the groups.
Floats group_scaled_gemm(const std::string& name, const Array<const uint8_t, 4>& codes,
                         const std::optional<Array<const uint16_t, 3>>& scales,
                         const std::optional<Array<const float, 1>>& row_scales, int m, int bits,
                         int first, int step, const Array<const int8_t, 3>& x,
                         const Array<const float, 2>& x_scales, int group_begin, int group_end) {
  const Kernels& kernels = kernels_named(name);
  const size_t groups = codes.shape(0), blocks = codes.shape(1);
  const size_t N = x.shape(0), n_parts = x.shape(1), K = x.shape(2);
  require(bits == 1 || bits == 2, "bits must be 1 or 2");
  require(codes.shape(2) == kRowsPerGroup && codes.shape(3) == kBlockBytes,
          "codes must be (groups, blocks, 8, 32)");
  require(m > 0 && static_cast<size_t>(m + 7) / 8 == groups, "codes must hold M rows");
  const size_t columns = blocks * kBlockBytes * 8 / bits;
  require(scales.has_value() != row_scales.has_value(), "need scales or row_scales");
  require(!row_scales || row_scales->shape(0) == static_cast<size_t>(m),
          "row_scales must be one for each of M rows");
  require(!scales || (scales->shape(0) == groups && scales->shape(2) == kRowsPerGroup &&
                      (scales->shape(1) * 64 == columns || scales->shape(1) * 128 == columns)),
          "scales must be (groups, n, 8) for 64 or 128 columns each");
  require(n_parts == 1 || n_parts == 2, "x must have 1 or 2 parts");
  require(K % kSignBlock == 0 && K >= columns && K < columns + kSignBlock,
          "x must have as many values as the codes have columns, padded to 256");
  require(x_scales.shape(0) == N && x_scales.shape(1) * kActivationGroup == K,
          "x_scales must be (N, K / 32)");
  require(0 <= group_begin && group_begin <= group_end && static_cast<size_t>(group_end) <= groups,
          "need 0 <= group_begin <= group_end <= groups");
  Buffer<int8_t> aligned = make_buffer<int8_t>(x.size());
  std::memcpy(aligned.get(), x.data(), x.size());
  std::vector<int32_t> sums(x_scales.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t n = i / (n_parts * K), part = i / K % n_parts, k = i % K;
    const int32_t weight = part + 1 < n_parts ? kPartWeight : 1;
    sums[(n * K + k) / kActivationGroup] -= weight * aligned[i];
  }
  const GroupScaledMatrix w = {
      .codes = codes.data(),
      .scales = scales ? scales->data() : nullptr,
      .row_scales = row_scales ? row_scales->data() : nullptr,
      .m = m,
      .n_blocks = static_cast<int>(blocks),
      .bits = bits,
      .group_columns = scales ? static_cast<int>(columns / scales->shape(1)) : 0,
      .first = first,
      .step = step};
  const GroupedRows rows = {.codes = aligned.get(),
                            .scales = x_scales.data(),
                            .sums = sums.data(),
                            .n = static_cast<int>(N),
                            .stride = static_cast<int>(K),
                            .n_parts = static_cast<int>(n_parts)};
  Floats y = new_array({N, static_cast<size_t>(m)});
  kernels.group_scaled_gemm(w, rows, group_begin, group_end, y.data(), m);
  return y;
}

nb::tuple quantize_grouped_row(const std::string& name, const Array<const float, 1>& x,
                               int n_parts) {
  const size_t K = x.shape(0), padded = round_up(K, kSignBlock);
  require(K % kLanes == 0, "K must be a multiple of 8");
  require(n_parts == 1 || n_parts == 2, "n_parts must be 1 or 2");
  int8_t* codes = new int8_t[n_parts * padded];
  nb::capsule owner(codes, [](void* p) noexcept { delete[] static_cast<int8_t*>(p); });
  std::vector<float> scales(padded / kActivationGroup);
  std::vector<int32_t> sums(padded / kActivationGroup);
  kernels_named(name).quantize_grouped_row(x.data(), K, padded, n_parts, padded, codes,
                                           scales.data(), sums.data());
  return nb::make_tuple(nb::cast(nb::ndarray<nb::numpy, int8_t>(
                            codes, {static_cast<size_t>(n_parts), padded}, owner)),
                        scales, sums);
}

nb::tuple quantize_int8_row(const std::string& name, const Array<const float, 1>& x) {
  const size_t K = x.shape(0);
  require(K % kLanes == 0, "K must be a multiple of 8");
  int8_t* codes = new int8_t[K];
  nb::capsule owner(codes, [](void* p) noexcept { delete[] static_cast<int8_t*>(p); });
  float scale;
  int32_t sum;
  kernels_named(name).quantize_int8_row(x.data(), K, K, codes, &scale, &sum);
  return nb::make_tuple(nb::cast(nb::ndarray<nb::numpy, int8_t>(codes, {K}, owner)), scale, sum);
}

nb::tuple quantize_int16_row(const std::string& name, const Array<const float, 1>& x) {
  const size_t K = x.shape(0), padded = round_up(K, kInt4Block);
  require(K % kLanes == 0, "K must be a multiple of 8");
  int16_t* codes = new int16_t[padded];
  nb::capsule owner(codes, [](void* p) noexcept { delete[] static_cast<int16_t*>(p); });
  std::vector<int32_t> sums(padded / kInt4Block);
  float scale;
  kernels_named(name).quantize_int16_row(x.data(), K, padded, codes, &scale, sums.data());
  return nb::make_tuple(nb::cast(nb::ndarray<nb::numpy, int16_t>(codes, {K}, owner)), scale, sums);
}

Floats rms_norm(const std::string& name, const Array<const float, 1>& x,
                const Array<const float, 1>& weight, float eps) {
  require(x.shape(0) % kLanes == 0 && weight.shape(0) == x.shape(0), "sizes must agree");
  Floats y = new_array({x.shape(0)});
  kernels_named(name).rms_norm(x.data(), weight.data(), x.shape(0), eps, y.data());
  return y;
}

Floats activate(const std::string& name, const std::string& function,
                const Array<const float, 1>& gate, const Array<const float, 1>& up) {
  const Kernels& kernels = kernels_named(name);
  require(gate.shape(0) == up.shape(0), "sizes must agree");
  for (const FeedForwardSpec& ffn : feed_forward_specs()) {
    if (function != ffn.name) continue;
    Floats y = new_array({gate.shape(0)});
    ffn.activate(kernels, gate.data(), up.data(), static_cast<int>(gate.shape(0)), y.data());
    return y;
  }
  throw std::invalid_argument("function must be an FFN kind but is '" + function + "'");
}

Floats exponentials(const std::string& name, const Array<const float, 1>& x, float largest,
                    float rate) {
  require(x.shape(0) % kLanes == 0, "sizes must be multiples of 8");
  Floats y = new_array({x.shape(0)});
  kernels_named(name).exponentials(x.data(), x.shape(0), largest, rate, y.data());
  return y;
}

Floats rope(const std::string& name, const Array<const float, 1>& x,
            const Array<const float, 1>& cosine, const Array<const float, 1>& sine,
            bool is_interleaved) {
  const Kernels& kernels = kernels_named(name);
  require(cosine.shape(0) * 2 == x.shape(0) && sine.shape(0) * 2 == x.shape(0),
          "cosine and sine must have half the values of x");
  Floats y = new_array({x.shape(0)});
  std::memcpy(y.data(), x.data(), x.shape(0) * sizeof(float));
  const auto rotate = is_interleaved ? kernels.rope_interleaved : kernels.rope_half;
  rotate(y.data(), cosine.data(), sine.data(), x.shape(0));
  return y;
}

// n positions q, k, v (n, D) after state (D, D); returns the next state and the outputs (n, D).
nb::tuple retain(const std::string& name, const Array<const float, 2>& state,
                 const Array<const float, 2>& q, const Array<const float, 2>& k,
                 const Array<const float, 2>& v, const Array<const float, 1>& decays) {
  const size_t n = q.shape(0), D = q.shape(1);
  require(D % kLanes == 0 && k.shape(0) == n && k.shape(1) == D && v.shape(0) == n &&
              v.shape(1) == D && state.shape(0) == D && state.shape(1) == D && decays.shape(0) == n,
          "q, k, v must be (n, D), decays (n,) and state (D, D), D a multiple of 8");
  Floats next = new_array({D, D}), o = new_array({n, D});
  std::memcpy(next.data(), state.data(), D * D * sizeof(float));
  kernels_named(name).retain(next.data(), q.data(), k.data(), v.data(), D, decays.data(),
                             static_cast<int>(n), static_cast<int>(D), o.data());
  return nb::make_tuple(nb::cast(next), nb::cast(o));
}

// x (D,) as an int4 cache stores it, and its scale.
nb::tuple store_int4(const std::string& name, const Array<const float, 1>& x) {
  const size_t D = x.shape(0), size = row_bytes(FloatType::i4, D);
  require(D % kLanes == 0 && D <= kMaxHeadDim, "D must be a multiple of 8 up to 1024");
  uint8_t* stored = new uint8_t[size];
  nb::capsule owner(stored, [](void* p) noexcept { delete[] static_cast<uint8_t*>(p); });
  float scale;
  kernels_named(name).store(x.data(), static_cast<int>(D), FloatType::i4, stored, &scale);
  return nb::make_tuple(nb::cast(nb::ndarray<nb::numpy, uint8_t>(stored, {size}, owner)), scale);
}

// The inverse (D,).
Floats load_int4(const std::string& name, const Array<const uint8_t, 1>& stored, float scale,
                 int D) {
  require(D > 0 && D % kLanes == 0 &&
              stored.shape(0) == static_cast<size_t>(row_bytes(FloatType::i4, D)),
          "stored must be a row of D values, D a multiple of 8");
  Floats x = new_array({static_cast<size_t>(D)});
  kernels_named(name).load(stored.data(), scale, D, FloatType::i4, x.data());
  return x;
}

// q (n, D) of one K/V head, keys and values (S, D) stored as `type`, attended over positions
// [begin, end), of those in `tiles` if given, in KV splits of kv_split positions; returns (n, D).
Floats attend(const std::string& name, const Array<const float, 2>& q,
              const Array<const float, 2>& keys, const Array<const float, 2>& values,
              const std::string& type, int64_t begin, int64_t end, int64_t kv_split,
              const std::optional<Array<const int32_t, 1>>& tiles) {
  const Kernels& kernels = kernels_named(name);
  const size_t S = keys.shape(0), N = q.shape(0), D = q.shape(1);
  require(D % kLanes == 0 && D <= kMaxHeadDim && keys.shape(1) == D && values.shape(1) == D &&
              values.shape(0) == S,
          "q must be (n, D), keys and values (S, D), D a multiple of 8");
  const auto seen = static_cast<int64_t>(tiles ? tiles->shape(0) * kAttentionTile : S);
  require(0 <= begin && begin < end && end <= seen && kv_split > 0,
          "need 0 <= begin < end <= S and a positive kv_split");
  for (size_t i = 0; tiles && i < tiles->shape(0); ++i) {
    require(
        (*tiles)(i) >= 0 && (int64_t{(*tiles)(i)} + 1) * kAttentionTile <= static_cast<int64_t>(S),
        "tiles must be whole ones of the keys");
  }
  KvCache cache(cache_type(type).type, 1, static_cast<int>(D), S);
  for (size_t s = 0; s < S; ++s) {
    cache.store(kernels, 0, s, keys.data() + s * D, values.data() + s * D);
  }
  KeysValues view = cache.view(0);
  if (tiles) view.tiles = tiles->data();
  const int64_t stride = D + kPartialExtra, first = begin / kv_split;
  const int64_t n_partials = (end - 1) / kv_split - first + 1;
  std::vector<float> partials(N * n_partials * stride);
  for (int64_t i = 0; i < n_partials; ++i) {
    const int64_t from = (first + i) * kv_split;
    kernels.attend(q.data(), static_cast<int>(N), view, std::max(begin, from),
                   std::min(end, from + kv_split), 1.0f / std::sqrt(static_cast<float>(D)),
                   &partials[i * stride], n_partials * stride);
  }
  Floats o = new_array({N, D});
  for (size_t n = 0; n < N; ++n) {
    float* partial = &partials[n * n_partials * stride];
    kernels.combine(partial, stride, static_cast<int>(n_partials), static_cast<int>(D));
    kernels.normalize(partial, static_cast<int>(D), o.data() + n * D);
  }
  return o;
}

}  // namespace

void bind_kernels(nb::module_& m) {
  m.def("low_bit_gemm", &low_bit_gemm, "kernels"_a, "codes"_a, "m"_a, "x"_a, "is_ternary"_a,
        "row_scales"_a = nb::none(),
        "Return y (N, M) = x (N, K) int8 times ternary or sign weights.\n\n"
        "`codes` (groups, blocks, 8, 32) hold M rows; `row_scales` (M,) are 1 unless given.");
  m.def("int8_gemm", &int8_gemm, "kernels"_a, "values"_a, "x"_a,
        "Return y (N, M) = x (N, K) int16 times int8 values (M, K); all scales are 1.");
  m.def("int4_gemm", &int4_gemm, "kernels"_a, "codes"_a, "scales"_a, "m"_a, "x"_a,
        "Return y (N, M) = x (N, K) int16 times int4 weights.\n\n"
        "`codes` (groups, blocks, 8, 32) hold M rows, `scales` (groups, blocks, 8) float16 bits.");
  m.def("group_scaled_gemm", &group_scaled_gemm, "kernels"_a, "codes"_a, "scales"_a.none(),
        "row_scales"_a.none(), "m"_a, "bits"_a, "first"_a, "step"_a, "x"_a, "x_scales"_a,
        "group_begin"_a, "group_end"_a,
        "Return y (N, M) = grouped x times group-scaled weights (first + step * code) * scale.\n\n"
        "`codes` (groups, blocks, 8, 32) hold M rows in the order [8 units][8 rows][4 bytes],\n"
        "`scales` (groups, n, 8) float16 bits, or `row_scales` (M,); `x` (N, parts, K) int8 with\n"
        "`x_scales` (N, K / 32). Only rows of the groups are computed, others are 0.");
  m.def("dense_gemm", &dense_gemm<float>, "kernels"_a, "values"_a, "x"_a,
        "Return y (N, M) = x (N, K) times float32 values (M, K), or float16 as their bits.");
  m.def("dense_gemm", &dense_gemm<uint16_t>, "kernels"_a, "values"_a, "x"_a);
  m.def("quantize_int8_row", &quantize_int8_row, "kernels"_a, "x"_a,
        nb::sig("def quantize_int8_row(kernels: str, x: numpy.typing.NDArray[numpy.float32]) -> "
                "tuple[numpy.typing.NDArray[numpy.int8], float, int]"),
        "Return the codes of x (K,), their scale and their sum.");
  m.def("quantize_int16_row", &quantize_int16_row, "kernels"_a, "x"_a,
        nb::sig("def quantize_int16_row(kernels: str, x: numpy.typing.NDArray[numpy.float32]) -> "
                "tuple[numpy.typing.NDArray[numpy.int16], float, list[int]]"),
        "Return the codes of x (K,), their scale and the sum of every 64 of them.");
  m.def("quantize_grouped_row", &quantize_grouped_row, "kernels"_a, "x"_a, "n_parts"_a,
        nb::sig("def quantize_grouped_row(kernels: str, x: numpy.typing.NDArray[numpy.float32], "
                "n_parts: int) -> tuple[numpy.typing.NDArray[numpy.int8], list[float], list[int]]"),
        "Return the parts (n_parts, K padded to 256) of x (K,), a scale for every 32 values, and\n"
        "minus the sum of every 32 integers.");
  m.def("rms_norm", &rms_norm, "kernels"_a, "x"_a, "weight"_a, "eps"_a,
        "Return RMSNorm of x (K,) times weight (K,).");
  m.def("exponentials", &exponentials, "kernels"_a, "x"_a, "largest"_a, "rate"_a,
        "Return e^((x - largest) rate) of x (K,), K a multiple of 8.");
  m.def("activate", &activate, "kernels"_a, "function"_a, "gate"_a, "up"_a,
        "Return the activation of an FFN kind: \"swiglu\", \"geglu\", \"relu2\" or \"sign\".");
  m.def(
      "rope", &rope, "kernels"_a, "x"_a, "cosine"_a, "sine"_a, "is_interleaved"_a,
      "Return the head x (D,) rotated by angles (D / 2,), in pairs (2i, 2i + 1) or (i, i + D/2).");
  m.def(
      "retain", &retain, "kernels"_a, "state"_a, "q"_a, "k"_a, "v"_a, "decays"_a,
      nb::sig("def retain(kernels: str, state: numpy.typing.NDArray[numpy.float32], "
              "q: numpy.typing.NDArray[numpy.float32], k: numpy.typing.NDArray[numpy.float32], "
              "v: numpy.typing.NDArray[numpy.float32], "
              "decays: numpy.typing.NDArray[numpy.float32]) -> "
              "tuple[numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32]]"),
      "Return the state (D, D) after n positions q, k, v (n, D), decays (n,), and outputs (n, D).");
  m.def("store_int4", &store_int4, "kernels"_a, "x"_a,
        nb::sig("def store_int4(kernels: str, x: numpy.typing.NDArray[numpy.float32]) -> "
                "tuple[numpy.typing.NDArray[numpy.uint8], float]"),
        "Return the int4 row of a KV cache for x (D,), and its scale.");
  m.def("load_int4", &load_int4, "kernels"_a, "stored"_a, "scale"_a, "D"_a,
        "Return the values (D,) of an int4 row.");
  m.def("attend", &attend, "kernels"_a, "q"_a, "keys"_a, "values"_a, "type"_a, "begin"_a, "end"_a,
        "kv_split"_a, "tiles"_a = nb::none(),
        "Return attention (n, D) of queries q (n, D) to positions [begin, end) of a KV head.\n\n"
        "`keys` and `values` (S, D) are cached as a type of cache_types() and combined from KV\n"
        "splits of `kv_split` positions. With `tiles`, positions count within these tiles of 32.");
}

}  // namespace yocobit
