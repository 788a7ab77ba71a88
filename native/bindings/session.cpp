// yocobit._native.Session.

#include "engine/session.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <string_view>
#include <vector>

#include "bindings/arrays.h"
#include "engine/engine.h"
#include "kernels/family.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace yocobit {
namespace {

void construct(Session* self, Engine& engine, int64_t max_tokens, const std::string& type) {
  const FloatType cache = cache_type(type).type;
  const nb::gil_scoped_release release;
  new (self) Session(engine.model(), max_tokens, cache);
  try {
    engine.reserve(max_tokens);
  } catch (...) {
    self->~Session();
    throw;
  }
}

int checked_layer(const Session& session, int layer) {
  if (layer < 0 || layer >= static_cast<int>(session.model.layers.size())) {
    throw nb::index_error("layer");
  }
  return layer;
}

nb::object retention_state(const Session& session, int layer) {
  if (checked_layer(session, layer) >= session.model.n_self_layers) return nb::none();
  if (session.model.layers[layer].mixer->name != std::string_view("retention")) return nb::none();
  const float* state = session.layers[layer].recurrent.get();
  const Heads heads = session.model.config.retention_heads();
  const size_t H = heads.n_heads, D = heads.head_dim;
  Floats out = new_array({H, D, D});
  std::copy(state, state + H * D * D, out.data());
  return nb::cast(out);
}

nb::object keys_values(Session& session, int layer, int64_t begin, int64_t end) {
  const KvCache* cache = session.kv_cache(checked_layer(session, layer));
  if (!cache) return nb::none();
  if (begin < 0 || begin > end || end > session.position ||
      session.position - begin > cache->capacity()) {
    throw nb::index_error("positions are not cached");
  }
  const size_t G = cache->n_heads(), n = end - begin;
  const size_t D = session.model.config.head_size.value_or(cache->head_dim());
  Floats keys = new_array({G, n, D}), values = new_array({G, n, D});
  const Kernels& scalar = kernel_family("scalar").kernels;
  std::vector<float> row(cache->head_dim());  // padded
  for (size_t head = 0; head < G; ++head) {
    for (size_t i = 0; i < n; ++i) {
      const size_t at = (head * n + i) * D;
      cache->load_key(scalar, head, begin + i, row.data());
      std::copy_n(row.data(), D, keys.data() + at);
      cache->load_value(scalar, head, begin + i, row.data());
      std::copy_n(row.data(), D, values.data() + at);
    }
  }
  return nb::make_tuple(nb::cast(keys), nb::cast(values));
}

nb::dict memory(const Session& session) {
  const SessionMemory memory = session.memory();
  nb::dict result;
  result["shared_kv"] = memory.shared_kv;
  result["full"] = memory.full;
  result["window"] = memory.window;
  result["retention"] = memory.retention;
  result["index"] = memory.index;
  result["shared_kv_per_token"] = memory.shared_kv_per_token;
  result["full_per_token"] = memory.full_per_token;
  return result;
}

void copy_tokens(const Session& session, const Array<int32_t, 1>& out) {
  require_size(out, session.position);
  std::copy_n(session.tokens.get(), out.size(), out.data());  // position may grow meanwhile
}

}  // namespace

void bind_session(nb::module_& m) {
  nb::class_<Session>(m, "Session",
                      "KV caches and recurrent states of one sequence; use it through\n"
                      "yocobit.engine.Session.\n\n"
                      "Letters: H heads, G KV heads, D head size.")
      .def("__init__", &construct, "engine"_a, "max_tokens"_a, "cache_type"_a,
           nb::keep_alive<1, 2>(),
           "Reserve memory for that many tokens in caches of a type of cache_types().\n\n"
           "MemoryError if memory is insufficient; ValueError for another type.")
      .def("retention_state", &retention_state, "layer"_a,
           nb::sig("def retention_state(self, layer: int) -> "
                   "numpy.typing.NDArray[numpy.float32] | None"),
           "Return a copy of the state (H, D, D), key by value, of a retention layer; None for\n"
           "other layers.")
      .def("keys_values", &keys_values, "layer"_a, "begin"_a, "end"_a,
           nb::sig("def keys_values(self, layer: int, begin: int, end: int) -> "
                   "tuple[numpy.typing.NDArray[numpy.float32], "
                   "numpy.typing.NDArray[numpy.float32]] | None"),
           "Return copies of cached keys and values, each (G, end - begin, D); None for a layer\n"
           "without a cache.\n\n"
           "Cross layers return the shared ones. IndexError for positions that are not cached.")
      .def("memory", &memory, nb::sig("def memory(self) -> dict[str, int]"),
           "Return the bytes reserved, by the fields of yocobit.engine.SessionMemory.")
      .def("is_finite", &Session::is_finite, nb::call_guard<nb::gil_scoped_release>(),
           "Whether no recurrent state, cached value or scale is NaN or infinite.")
      .def("copy_tokens", &copy_tokens, "out"_a.noconvert(),
           "Copy the tokens consumed so far into int32 `out` (position,).")
      .def("state_bytes", &Session::state_bytes, "position"_a,
           "Return the size of Engine.copy_state after that many tokens.")
      .def_prop_ro("bytes_per_position", &Session::bytes_per_position,
                   "Bytes of Engine.copy_positions for each position.")
      .def_ro("position", &Session::position, "Tokens consumed so far.")
      .def_ro("max_tokens", &Session::max_tokens, "Tokens that the session can hold.");
}

}  // namespace yocobit
