// Single kernels over rows, heads and caches as Python functions, for tests that compare every
// family with NumPy. GEMMs are in gemm.cpp.

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
  std::vector<AttentionQuery> queries(N);
  for (int64_t i = 0; i < n_partials; ++i) {
    const int64_t from = (first + i) * kv_split;
    for (size_t n = 0; n < N; ++n) {
      queries[n] = {.q = q.data() + n * D,
                    .begin = std::max(begin, from),
                    .end = std::min(end, from + kv_split),
                    .partial = &partials[(n * n_partials + i) * stride]};
    }
    kernels.attend(queries.data(), static_cast<int>(N), view,
                   1.0f / std::sqrt(static_cast<float>(D)));
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
