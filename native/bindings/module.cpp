// The only file that sees Python: numpy arrays and dicts in, C++ calls with the GIL released.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>

#include "bindings/kernel_arguments.h"
#include "bindings/numpy_array.h"
#include "engine/engine.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace yocobit {

void bind_kernels(nb::module_& m);    // kernels.cpp
void bind_benchmark(nb::module_& m);  // benchmark.cpp
void bind_rows(nb::module_& m);       // rows.cpp
void bind_sampler(nb::module_& m);    // sampler.cpp
void bind_training(nb::module_& m);   // training.cpp

namespace {

template <typename Enum>
Enum choose(const char* what, const std::string& value, const std::map<std::string, Enum>& values) {
  const auto found = values.find(value);
  if (found == values.end()) {
    throw std::invalid_argument(std::string(what) + " is not known to the engine: '" + value + "'");
  }
  return found->second;
}

RopeKind rope_kind(const std::string& value) {
  return choose<RopeKind>(
      "rope", value,
      {{"interleaved", RopeKind::interleaved}, {"half", RopeKind::half}, {"none", RopeKind::none}});
}

FloatType cache_type(const std::string& value) {
  return choose<FloatType>("cache type", value,
                           {{"f32", FloatType::f32},
                            {"f16", FloatType::f16},
                            {"int8", FloatType::i8},
                            {"int4", FloatType::i4}});
}

ModelConfig model_config(const nb::dict& fields) {
  const auto integer = [&](const char* name) { return nb::cast<int>(fields[name]); };
  const auto text = [&](const char* name) { return nb::cast<std::string>(fields[name]); };
  ModelConfig config = {};
  config.vocab_size = integer("vocab_size");
  config.d_model = integer("d_model");
  config.d_ff = integer("d_ff");
  config.n_heads = integer("n_heads");
  config.n_kv_heads = integer("n_kv_heads");
  config.n_self_heads = integer("n_self_heads");
  config.n_self_kv_heads = integer("n_self_kv_heads");
  config.window = integer("window");
  for (const std::string& mixer : nb::cast<std::vector<std::string>>(fields["layers"])) {
    config.layers.push_back(choose<Mixer>("mixer", mixer,
                                          {{"retention", Mixer::retention},
                                           {"window", Mixer::window},
                                           {"full", Mixer::full},
                                           {"cross", Mixer::cross},
                                           {"gmu", Mixer::gmu}}));
  }
  config.ffn = choose<FeedForwardKind>("ffn", text("ffn"),
                                       {{"swiglu", FeedForwardKind::swiglu},
                                        {"relu2", FeedForwardKind::relu2},
                                        {"sign", FeedForwardKind::sign}});
  config.weights = choose<WeightKind>(
      "weights", text("weights"),
      {{"ternary", WeightKind::ternary}, {"sign", WeightKind::sign}, {"dense", WeightKind::dense}});
  config.sub_norm = nb::cast<bool>(fields["sub_norm"]);
  config.tie_embeddings = nb::cast<bool>(fields["tie_embeddings"]);
  config.scale_embedding = nb::cast<bool>(fields["scale_embedding"]);
  config.retention_rope = rope_kind(text("retention_rope"));
  config.window_rope = rope_kind(text("window_rope"));
  config.full_rope = rope_kind(text("full_rope"));
  config.cross_rope = rope_kind(text("cross_rope"));
  config.rope_theta = nb::cast<double>(fields["rope_theta"]);
  config.norm_eps = nb::cast<float>(fields["norm_eps"]);
  config.cross_attention = choose<CrossAttention>("cross attention", text("cross_attention"),
                                                  {{"full", CrossAttention::full},
                                                   {"index", CrossAttention::index},
                                                   {"window", CrossAttention::window}});
  config.cross_positions = integer("cross_positions");
  if (config.head_dim() > kMaxHeadDim || config.self_head_dim() > kMaxHeadDim) {
    throw std::invalid_argument("heads must have at most " + std::to_string(kMaxHeadDim) +
                                " values each");
  }
  return config;
}

// Tensors as {name: (dtype, shape, begin, end)}.
std::map<std::string, TensorEntry> tensor_entries(const nb::dict& tensors) {
  std::map<std::string, TensorEntry> entries;
  for (const auto& [name, value] : tensors) {
    const nb::tuple fields = nb::cast<nb::tuple>(value);
    entries[nb::cast<std::string>(name)] = {
        nb::cast<std::string>(fields[0]), nb::cast<std::vector<int64_t>>(fields[1]),
        nb::cast<int64_t>(fields[2]), nb::cast<int64_t>(fields[3])};
  }
  return entries;
}

const Kernels& find_kernels(const std::string& name) {
  const Kernels* const* kernels = supported_kernels();
  if (!name.empty()) return named(kernels, name);
  while (kernels[1]) ++kernels;
  return **kernels;
}

using Tokens = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Where results go: yocobit.engine makes it, or checks a caller's. Python objects apart, a call
// then allocates nothing.
using Out = nb::ndarray<float, nb::c_contig, nb::device::cpu>;

void check_size(const Out& out, size_t size) {
  if (out.size() != size) {
    throw std::invalid_argument("out must have " + std::to_string(size) + " values but has " +
                                std::to_string(out.size()));
  }
}

void feed(Engine& engine, Session& session, const Tokens& tokens, const std::string& which,
          const std::optional<Out>& out) {
  const Logits logits = choose<Logits>(
      "logits", which, {{"none", Logits::none}, {"last", Logits::last}, {"all", Logits::all}});
  const size_t V = engine.model().config.vocab_size, n = tokens.shape(0);
  if (n == 0) throw std::invalid_argument("feed: needs at least one token but got none");
  if (logits != Logits::none) {
    if (!out) throw std::invalid_argument("feed: needs out for the logits");
    check_size(*out, logits == Logits::all ? n * V : V);
  }
  nb::gil_scoped_release release;
  engine.feed(session, tokens.data(), n, logits, out ? out->data() : nullptr);
}

void step(Engine& engine, const std::vector<Session*>& sessions, const Tokens& tokens,
          const std::optional<Out>& out, const std::vector<std::pair<Session*, Tokens>>& prompts) {
  const size_t n = sessions.size();
  if (n != tokens.shape(0)) {
    throw std::invalid_argument("step: needs one token for each session but got " +
                                std::to_string(tokens.shape(0)) + " for " + std::to_string(n));
  }
  if (n == 0 && prompts.empty()) throw std::invalid_argument("step: needs a session");
  if (n > 0 && !out) throw std::invalid_argument("step: needs out for the logits");
  if (n > 0) check_size(*out, n * engine.model().config.vocab_size);
  std::vector<Prompt> parts;
  for (const auto& [session, part] : prompts) {
    parts.push_back({session, part.data(), static_cast<int64_t>(part.shape(0))});
  }
  nb::gil_scoped_release release;
  engine.step(parts, sessions.data(), tokens.data(), static_cast<int>(n),
              out ? out->data() : nullptr);
}

using ByteArray = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

Bytes bytes_of(const ByteArray& array) {
  return {array.data(), static_cast<int64_t>(array.shape(0))};
}

using TokensOut = nb::ndarray<int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ByteOut = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void copy_state(Engine& engine, Session& session, const ByteOut& out) {
  nb::gil_scoped_release release;
  engine.copy_state(session, out.data(), static_cast<int64_t>(out.shape(0)));
}

void copy_positions(Engine& engine, Session& session, int64_t begin, int64_t end,
                    const ByteOut& out) {
  nb::gil_scoped_release release;
  engine.copy_positions(session, begin, end, out.data(), static_cast<int64_t>(out.shape(0)));
}

void restore(Engine& engine, Session& session, const Tokens& tokens, const ByteArray& state,
             int64_t kept, const std::vector<ByteArray>& pieces) {
  std::vector<Bytes> bytes;
  for (const ByteArray& piece : pieces) bytes.push_back(bytes_of(piece));
  nb::gil_scoped_release release;
  engine.restore(session, tokens.data(), static_cast<int64_t>(tokens.shape(0)), bytes_of(state),
                 kept, bytes);
}

int checked_layer(const Session& session, int layer) {
  if (layer < 0 || layer >= static_cast<int>(session.model.layers.size())) {
    throw nb::index_error("layer");
  }
  return layer;
}

nb::object retention_state(const Session& session, int layer) {
  if (checked_layer(session, layer) >= session.model.n_self_layers) return nb::none();
  const float* state = session.layers[layer].retention.get();
  if (!state) return nb::none();
  const size_t H = session.model.config.n_self_heads, D = session.model.config.self_head_dim();
  Floats out = new_array({H, D, D});
  std::copy(state, state + H * D * D, out.data());
  return nb::cast(out);
}

nb::object keys_values(const Session& session, int layer, int64_t begin, int64_t end) {
  const KeyValueCache* cache = session.keys_values(checked_layer(session, layer));
  if (!cache) return nb::none();
  if (begin < 0 || begin > end || end > session.position ||
      session.position - begin > cache->capacity()) {
    throw nb::index_error("positions are not cached");
  }
  const size_t G = cache->n_heads(), D = cache->head_dim(), n = end - begin;
  Floats keys = new_array({G, n, D}), values = new_array({G, n, D});
  for (size_t head = 0; head < G; ++head) {
    for (size_t i = 0; i < n; ++i) {
      const size_t at = (head * n + i) * D;
      cache->load_key(kScalarKernels, head, begin + i, keys.data() + at);
      cache->load_value(kScalarKernels, head, begin + i, values.data() + at);
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

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "The native engine of yocobit; use it through yocobit.Engine.";
  m.def("supported_kernels", [] {
    std::vector<std::string> names;
    for (const Kernels* const* k = supported_kernels(); *k; ++k) names.emplace_back((*k)->name);
    return names;
  });
  bind_kernels(m);
  bind_rows(m);
  bind_sampler(m);
  bind_training(m);

  nb::class_<Engine>(m, "Engine")
      .def(
          "__init__",
          [](Engine* self, const std::string& path, const nb::dict& config, const nb::dict& tensors,
             const std::string& kernels, int n_threads) {
            if (n_threads < 1 || n_threads > 1024) {
              throw std::invalid_argument("threads must be between 1 and 1024 but is " +
                                          std::to_string(n_threads));
            }
            new (self) Engine(path, model_config(config), tensor_entries(tensors),
                              find_kernels(kernels), n_threads);
          },
          "path"_a, "config"_a, "tensors"_a, "kernels"_a, "n_threads"_a)
      .def("feed", &feed, "session"_a, "tokens"_a, "logits"_a, "out"_a.noconvert().none())
      .def("step", &step, "sessions"_a, "tokens"_a, "out"_a.noconvert().none(), "prompts"_a)
      .def("copy_state", &copy_state, "session"_a, "out"_a.noconvert())
      .def("copy_positions", &copy_positions, "session"_a, "begin"_a, "end"_a, "out"_a.noconvert())
      .def("restore", &restore, "session"_a, "tokens"_a, "state"_a, "kept"_a, "pieces"_a)
      .def_prop_ro("kernels", [](const Engine& engine) { return engine.kernels().name; })
      .def_prop_ro("n_threads", &Engine::n_threads)
      .def_prop_ro("vocab_size", [](const Engine& e) { return e.model().config.vocab_size; })
      .def_prop_ro("buffer_bytes", &Engine::buffer_bytes);

  nb::class_<Session>(m, "Session")
      .def(
          "__init__",
          [](Session* self, Engine& engine, int64_t max_tokens, const std::string& type) {
            new (self) Session(engine.model(), max_tokens, cache_type(type));
          },
          "engine"_a, "max_tokens"_a, "cache_type"_a, nb::keep_alive<1, 2>())
      .def("retention_state", &retention_state, "layer"_a)
      .def("keys_values", &keys_values, "layer"_a, "begin"_a, "end"_a)
      .def("memory", &memory)
      .def(
          "copy_tokens",
          [](const Session& session, const TokensOut& out) {
            if (static_cast<int64_t>(out.shape(0)) != session.position) {
              throw std::invalid_argument("out must have " + std::to_string(session.position) +
                                          " values but has " + std::to_string(out.shape(0)));
            }
            std::copy_n(session.tokens.get(), session.position, out.data());
          },
          "out"_a.noconvert())
      .def("state_bytes", &Session::state_bytes, "position"_a)
      .def_prop_ro("bytes_per_position", &Session::bytes_per_position)
      .def_ro("position", &Session::position)
      .def_ro("max_tokens", &Session::max_tokens);
  bind_benchmark(m);  // after the classes that its signatures name
}

}  // namespace yocobit
