// yocobit._native.Sampler, and sampling for all sequences of a step in one call.

#include "engine/sampler.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "bindings/arrays.h"
#include "kernels/family.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace yocobit {
namespace {

using Logits = Array<const float, 1>;

SamplerScratch& scratch_of_thread() {
  thread_local SamplerScratch scratch(kernel_family("").kernels);
  return scratch;
}

void check(const Logits& logits) {
  if (logits.shape(0) == 0 || logits.shape(0) > size_t{1} << 30) {
    throw std::invalid_argument("sample: logits must have 1 to 2^30 values but have " +
                                std::to_string(logits.shape(0)));
  }
}

Pcg64::Word word_of(const nb::int_& value) {
  const nb::object low = value & nb::int_(~uint64_t{0});
  return {nb::cast<uint64_t>(value >> nb::int_(64)), nb::cast<uint64_t>(low)};
}

SamplingFilters filters_of(double temperature, int64_t top_k, double top_p, double min_p) {
  if (!(temperature >= 0)) {  // NaN, too: weights must not exceed that of the argmax
    throw std::invalid_argument("sample: temperature must be at least 0 but is " +
                                std::to_string(temperature));
  }
  return {.temperature = temperature, .top_k = top_k, .top_p = top_p, .min_p = min_p};
}

void construct(Sampler* self, const nb::int_& state, const nb::int_& increment, double temperature,
               int64_t top_k, double top_p, double min_p, float repetition, float presence,
               float frequency, const std::vector<int32_t>& prompt,
               const std::vector<std::pair<int32_t, float>>& logit_bias) {
  new (self) Sampler({.repetition = repetition, .presence = presence, .frequency = frequency},
                     filters_of(temperature, top_k, top_p, min_p),
                     Pcg64(word_of(state), word_of(increment)), prompt, logit_bias);
}

int32_t sample(Sampler& sampler, const Logits& logits) {
  check(logits);
  nb::gil_scoped_release release;
  return sampler.sample(logits.data(), static_cast<int64_t>(logits.shape(0)), scratch_of_thread());
}

std::vector<int32_t> sample_batch(const std::vector<Sampler*>& samplers,
                                  const std::vector<Logits>& logits) {
  if (samplers.size() != logits.size()) {
    throw std::invalid_argument("sample_batch: needs one row of logits for each sampler but got " +
                                std::to_string(logits.size()) + " for " +
                                std::to_string(samplers.size()));
  }
  for (const Logits& row : logits) check(row);
  require(std::find(samplers.begin(), samplers.end(), nullptr) == samplers.end(),
          "sample_batch: samplers must not be None");
  nb::gil_scoped_release release;
  std::vector<int32_t> tokens;
  tokens.reserve(samplers.size());
  for (size_t i = 0; i < samplers.size(); ++i) {
    tokens.push_back(samplers[i]->sample(logits[i].data(), static_cast<int64_t>(logits[i].shape(0)),
                                         scratch_of_thread()));
  }
  return tokens;
}

int32_t sample_at(const Logits& logits, double temperature, int64_t top_k, double top_p,
                  double min_p, double uniform) {
  check(logits);
  return scratch_of_thread().distribution.sample(
      logits.data(), static_cast<int64_t>(logits.shape(0)),
      filters_of(temperature, top_k, top_p, min_p), uniform);
}

}  // namespace

void bind_sampler(nb::module_& m) {
  nb::class_<Sampler>(
      m, "Sampler",
      "Samples the tokens of one sequence: penalties, logit bias, temperature, top-k,\n"
      "top-p and min-p, in this order, and NumPy's PCG64 random numbers.")
      .def(
          "__init__", &construct, nb::kw_only(), "state"_a, "increment"_a, "temperature"_a,
          "top_k"_a, "top_p"_a, "min_p"_a, "repetition_penalty"_a = 1.0f,
          "presence_penalty"_a = 0.0f, "frequency_penalty"_a = 0.0f,
          "prompt"_a = std::vector<int32_t>(),
          "logit_bias"_a = std::vector<std::pair<int32_t, float>>(),
          "Start after `prompt`, whose tokens count for the repetition penalty only.\n\n"
          "`state` and `increment` (128 bits each) are numpy.random.PCG64(seed).state[\"state\"].\n"
          "`logit_bias` holds pairs of a token and the value added to its logit. Ranges are not\n"
          "checked here but in yocobit.engine.SamplingConfig; ValueError for negative tokens.")
      .def("sample", &sample, "logits"_a,
           "Sample the next token from float32 logits (V,), which are not modified.\n\n"
           "IndexError if the prompt or the bias has a token outside the vocabulary.")
      .def_prop_ro("n_generated", &Sampler::n_generated, "Tokens sampled so far.");
  m.def("sample_batch", &sample_batch, "samplers"_a, "logits"_a,
        "Sample one token with each sampler from its row of float32 logits (V,).\n\n"
        "The rows are the arrays of a list, or those of an array (n, V). Results equal those of\n"
        "`Sampler.sample`. ValueError if there are not as many rows. Releases the GIL.");
  m.def("sample_at", &sample_at, "logits"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a,
        "uniform"_a,
        "Return the token where the cumulative probability, after the filters, exceeds `uniform`,\n"
        "in [0, 1).");
}

}  // namespace yocobit
