// yocobit._native.Engine. Arrays in and out; the GIL is released while the engine runs.

#include "engine/engine.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <unistd.h>

#include <chrono>
#include <optional>
#include <stdexcept>
#include <utility>

#if defined(__linux__)
#include <sys/syscall.h>
#endif

#include "bindings/arrays.h"
#include "bindings/model_config.h"
#include "kernels/family.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace yocobit {
namespace {

// Python runs signal handlers in its main thread only, which is that of the process unless Python
// is embedded; other threads need not wait for the GIL.
bool is_main_thread() {
#if defined(__linux__)
  return syscall(SYS_gettid) == getpid();
#else
  return true;
#endif
}

// Run the signal handlers of Python, about ten times a second; throw what they raise.
void check_signals() {
  using Clock = std::chrono::steady_clock;
  thread_local Clock::time_point last;
  const Clock::time_point now = Clock::now();
  if (now - last < std::chrono::milliseconds(100) || !is_main_thread()) return;
  last = now;
  const nb::gil_scoped_acquire acquire;
  if (PyErr_CheckSignals() != 0) throw nb::python_error();
}

using Tokens = Array<const int32_t, 1>;
using ByteArray = Array<const uint8_t, 1>;
using ByteOut = Array<uint8_t, 1>;
// Logits of any number of dimensions, allocated by the caller, so that a call allocates nothing but
// Python objects.
using LogitsOut = nb::ndarray<float, nb::c_contig, nb::device::cpu>;

void construct(Engine* self, const std::string& path, const nb::dict& config,
               const nb::dict& tensors, const nb::dict& formats, const std::string& kernels,
               int n_threads) {
  if (n_threads < 1 || n_threads > 1024) {
    throw std::invalid_argument("threads must be between 1 and 1024 but is " +
                                std::to_string(n_threads));
  }
  new (self) Engine(path, model_config(config), tensor_entries(tensors, formats),
                    kernel_family(kernels), n_threads);
}

Logits logits_named(const std::string& which) {
  if (which == "none") return Logits::none;
  if (which == "last") return Logits::last;
  if (which == "all") return Logits::all;
  throw std::invalid_argument("logits must be none, last or all but is '" + which + "'");
}

void feed(Engine& engine, Session& session, const Tokens& tokens, const std::string& which,
          const std::optional<LogitsOut>& out) {
  const Logits logits = logits_named(which);
  const size_t V = engine.model().config.vocab_size, n = tokens.shape(0);
  if (n == 0) throw std::invalid_argument("feed: needs at least one token but got none");
  if (logits != Logits::none) {
    if (!out) throw std::invalid_argument("feed: needs out for the logits");
    require_size(*out, logits == Logits::all ? n * V : V);
  }
  nb::gil_scoped_release release;
  engine.feed(session, tokens.data(), n, logits, out ? out->data() : nullptr, check_signals);
}

void hidden_states(Engine& engine, Session& session, const Tokens& tokens, const LogitsOut& out) {
  const size_t n = tokens.shape(0);
  if (n == 0) throw std::invalid_argument("hidden_states: needs at least one token but got none");
  require_size(out, n * engine.model().config.d_model);
  nb::gil_scoped_release release;
  engine.hidden_states(session, tokens.data(), n, out.data(), check_signals);
}

void step(Engine& engine, const std::vector<Session*>& sessions, const Tokens& tokens,
          const std::optional<LogitsOut>& out,
          const std::vector<std::pair<Session*, Tokens>>& prompts) {
  const size_t n = sessions.size();
  if (n != tokens.shape(0)) {
    throw std::invalid_argument("step: needs one token for each session but got " +
                                std::to_string(tokens.shape(0)) + " for " + std::to_string(n));
  }
  for (const Session* session : sessions) require(session, "step: sessions must not be None");
  if (n == 0 && prompts.empty()) throw std::invalid_argument("step: needs a session");
  if (n > 0 && !out) throw std::invalid_argument("step: needs out for the logits");
  if (n > 0) require_size(*out, n * engine.model().config.vocab_size);
  std::vector<PrefillChunk> chunks;
  for (const auto& [session, part] : prompts) {
    require(session, "step: sessions must not be None");
    chunks.push_back({session, part.data(), static_cast<int64_t>(part.shape(0))});
  }
  nb::gil_scoped_release release;
  engine.step(chunks, sessions.data(), tokens.data(), static_cast<int>(n),
              out ? out->data() : nullptr, check_signals);
}

std::vector<std::string> find_problems(Engine& engine) {
  const nb::gil_scoped_release release;
  return engine.find_problems(check_signals);
}

void check_file(const Engine& engine) { engine.model().file().check_unchanged(); }

void copy_state(Engine& engine, Session& session, const ByteOut& out) {
  nb::gil_scoped_release release;
  engine.copy_state(session, out.data(), static_cast<int64_t>(out.shape(0)));
}

void copy_positions(Engine& engine, Session& session, int64_t begin, int64_t end,
                    const ByteOut& out) {
  nb::gil_scoped_release release;
  engine.copy_positions(session, begin, end, out.data(), static_cast<int64_t>(out.shape(0)));
}

Bytes bytes_of(const ByteArray& array) {
  return {array.data(), static_cast<int64_t>(array.shape(0))};
}

void restore(Engine& engine, Session& session, const Tokens& tokens, const ByteArray& state,
             int64_t kept, const std::vector<ByteArray>& pieces) {
  std::vector<Bytes> bytes;
  for (const ByteArray& piece : pieces) bytes.push_back(bytes_of(piece));
  nb::gil_scoped_release release;
  engine.restore(session, tokens.data(), static_cast<int64_t>(tokens.shape(0)), bytes_of(state),
                 kept, bytes);
}

}  // namespace

void bind_engine(nb::module_& m) {
  nb::exception<FileChangedError>(m, "FileChangedError", PyExc_RuntimeError);
  nb::class_<Engine>(
      m, "Engine",
      "A packed model with its threads and buffers; use it through yocobit.Engine.\n\n"
      "Calls from several threads are serialised and release the GIL. Those with many tokens run\n"
      "Python's signal handlers between batches; a child process after fork() starts threads of\n"
      "its own.\n"
      "Letters: T tokens, V vocabulary, N sessions.")
      .def(
          "__init__", &construct, "path"_a, "config"_a, "tensors"_a, "formats"_a, "kernels"_a,
          "n_threads"_a,
          nb::sig("def __init__(self, path: str, config: dict[str, typing.Any], tensors: dict[str, "
                  "tuple[str, list[int], int, int]], formats: dict[str, str], kernels: str, "
                  "n_threads: int) -> None"),
          "Map the safetensors file `path`.\n\n"
          "`config` is ModelConfig.to_dict(), `tensors` gives dtype, shape, first byte and end of\n"
          "each tensor, `formats` the weight format of each matrix (weight_formats()), `kernels`\n"
          "a name of supported_kernels(), the fastest if empty. ValueError, naming the tensor,\n"
          "where one does not match the configuration or is not inside the file; RuntimeError if\n"
          "the file cannot be mapped or the system refuses threads.")
      .def(
          "feed", &feed, "session"_a, "tokens"_a, "logits"_a, "out"_a.noconvert().none(),
          "Consume int32 tokens (T,) and write float32 logits into `out`.\n\n"
          "`logits` is \"none\", \"last\" (V values) or \"all\" (T V values). ValueError, with\n"
          "nothing changed, for a token outside the vocabulary, a full session, or an `out` of\n"
          "another size; FileChangedError, likewise, for the first tokens of a session if the\n"
          "model file was changed in place. After KeyboardInterrupt the session holds the batches\n"
          "before it.")
      .def("find_problems", &find_problems,
           "Return a line for each tensor that holds invalid values: one pass over the file.")
      .def("check_file", &check_file,
           "FileChangedError if the model file was overwritten or truncated since it was mapped.")
      .def(
          "hidden_states", &hidden_states, "session"_a, "tokens"_a, "out"_a.noconvert(),
          "Consume int32 tokens (T,) and write the hidden state of each after the final norm into\n"
          "float32 `out` (T, C). Errors as of `feed`.")
      .def("step", &step, "sessions"_a, "tokens"_a, "out"_a.noconvert().none(), "prompts"_a,
           "Decode one of `tokens` (N,) in each of N sessions, with logits in `out` (N, V).\n\n"
           "`prompts` are pairs of another session and tokens to prefill without logits. All\n"
           "sessions must differ; results equal those of `feed`. Errors as of `feed`.")
      .def("copy_state", &copy_state, "session"_a, "out"_a.noconvert(),
           "Copy recurrent states and sliding windows into uint8 `out` (Session.state_bytes,).")
      .def("copy_positions", &copy_positions, "session"_a, "begin"_a, "end"_a, "out"_a.noconvert(),
           "Copy positions [begin, end) of the growing KV caches into uint8 `out`, which has\n"
           "Session.bytes_per_position bytes for each.")
      .def(
          "restore", &restore, "session"_a, "tokens"_a, "state"_a, "kept"_a, "pieces"_a,
          "Restore a session to its state after tokens (T,).\n\n"
          "`state` is the output of copy_state, `pieces` those of copy_positions in order from\n"
          "position `kept`; the first `kept` positions stay. ValueError, with nothing changed, if\n"
          "tokens or sizes do not match.")
      .def_prop_ro(
          "kernels", [](const Engine& engine) { return engine.kernels().name; },
          "Name of the kernel family.")
      .def_prop_ro("n_threads", &Engine::n_threads, "Number of threads, the caller's included.")
      .def_prop_ro(
          "vocab_size", [](const Engine& engine) { return engine.model().config.vocab_size; }, "V.")
      .def_prop_ro(
          "d_model", [](const Engine& engine) { return engine.model().config.d_model; }, "C.")
      .def_prop_ro("buffer_bytes", &Engine::buffer_bytes,
                   "Bytes of the buffers that all sessions share.");
}

}  // namespace yocobit
