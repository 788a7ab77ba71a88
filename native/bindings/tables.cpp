// The engine's closed sets and constants, so that Python does not repeat them.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "engine/attention.h"
#include "engine/batch.h"
#include "engine/block_index.h"
#include "engine/kv_cache.h"
#include "kernels/family.h"
#include "kernels/training_kernels.h"
#include "model/mixer_spec.h"
#include "model/weight_format.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace yocobit {
namespace {

nb::list weight_format_records() {
  nb::list records;
  for (const WeightFormat& format : weight_formats()) {
    nb::list values;
    for (int code = 0; code < format.codes.n; ++code) {
      values.append(format.codes.first + code * format.codes.step);
    }
    nb::dict record;
    record["name"] = format.name;
    record["dtype"] = format.dtype;
    record["bits"] = format.bits;
    record["values"] = values;
    record["block_columns"] = format.block_columns;
    record["unit_bytes"] = format.unit_bytes;
    record["scale"] = name_of(format.scale);
    record["group_columns"] = format.group_columns;
    record["scale_dtype"] = format.scale_dtype;
    record["activations"] = name_of(format.activations);
    records.append(record);
  }
  return records;
}

const char* name_of(KvCacheKind kind) {
  switch (kind) {
    case KvCacheKind::none:
      return "none";
    case KvCacheKind::per_token:
      return "per_token";
    case KvCacheKind::ring:
      return "ring";
    case KvCacheKind::shared:
      return "shared";
  }
  return "";
}

nb::list mixer_records() {
  nb::list records;
  for (const MixerSpec& mixer : mixer_specs()) {
    nb::list parameters;
    for (const MixerParameter& parameter : mixer.parameters) parameters.append(parameter.name);
    nb::dict record;
    record["name"] = mixer.name;
    record["decoder"] = mixer.is_cross_decoder ? "cross" : "self";
    record["parameters"] = parameters;
    record["has_sub_norm"] = mixer.has_sub_norm;
    record["kv_cache"] = name_of(mixer.kv_cache);
    record["has_state"] = mixer.state_values != nullptr;
    record["reads_memory"] = mixer.reads_memory;
    records.append(record);
  }
  return records;
}

nb::list feed_forward_records() {
  nb::list records;
  for (const FeedForwardSpec& ffn : feed_forward_specs()) {
    nb::dict record;
    record["name"] = ffn.name;
    record["has_gate"] = ffn.has_gate;
    record["has_sub_norm"] = ffn.has_sub_norm;
    record["has_experts"] = ffn.has_experts;
    record["max_batch_tokens"] = ffn.max_batch_tokens;
    records.append(record);
  }
  return records;
}

nb::list cache_type_records() {
  nb::list records;
  for (const CacheType& type : cache_types()) {
    nb::dict record;
    record["name"] = type.name;
    record["bits"] = type.bits;
    record["row_values"] = type.row_values;
    record["scale_bytes"] = type.scale_bytes;
    records.append(record);
  }
  return records;
}

std::vector<std::string> names_of(const std::vector<KernelFamily>& families) {
  std::vector<std::string> names;
  for (const KernelFamily& family : families) names.emplace_back(family.name);
  return names;
}

}  // namespace

void bind_tables(nb::module_& m) {
  m.def(
      "supported_kernels", [] { return names_of(supported_families()); },
      "Return the names of the kernel families that this CPU supports, slowest first.\n\n"
      "The first, \"scalar\", is the reference; all return the same bits.");
  m.def(
      "emulated_kernels", [] { return names_of(emulated_families()); },
      "Return the names of the emulated kernel families; there are some in test builds only.");
  m.def(
      "weight_formats", &weight_format_records,
      nb::sig("def weight_formats() -> list[dict[str, typing.Any]]"),
      "Return the records of the weight formats: `name`, `dtype` of the codes, `bits` of a code,\n"
      "`values` that codes stand for before the scale, `block_columns` (1: contiguous rows),\n"
      "`unit_bytes`, `scale` (\"none\", \"tensor\", \"row\", \"group\"), `group_columns`,\n"
      "`scale_dtype` and `activations`.");
  m.def("mixers", &mixer_records, nb::sig("def mixers() -> list[dict[str, typing.Any]]"),
        "Return the records of the token mixers: `name`, `decoder` (\"self\", \"cross\"),\n"
        "`parameters` (matrices), `has_sub_norm`, `kv_cache` (\"none\", \"per_token\", \"ring\",\n"
        "\"shared\"), `has_state` and `reads_memory`.");
  m.def("feed_forwards", &feed_forward_records,
        nb::sig("def feed_forwards() -> list[dict[str, typing.Any]]"),
        "Return the records of the FFN kinds: `name`, `has_gate`, `has_sub_norm`, `has_experts`\n"
        "and `max_batch_tokens`.");
  m.def("cache_types", &cache_type_records,
        nb::sig("def cache_types() -> list[dict[str, typing.Any]]"),
        "Return the records of the KV cache types: `name`, `bits` of a value, `row_values` (rows\n"
        "are padded to multiples of them) and `scale_bytes` of each row.");

  m.attr("TOKEN_BLOCK") = kTokenBlock;                   // tokens of a tile of a GEMM
  m.attr("KV_SPLIT") = kKvSplit;                         // positions of a flash-decoding split
  m.attr("BLOCK_POSITIONS") = kAttentionTile;            // of the block index, and cache tiles
  m.attr("FIRST_BLOCKS") = kFirstBlocks;                 // that every token attends to
  m.attr("LAST_BLOCKS") = kLastBlocks;                   // likewise
  m.attr("CANDIDATES_PER_BLOCK") = kCandidatesPerBlock;  // for each block that is selected
  m.attr("ROWS_PER_GROUP") = kRowsPerGroup;              // interleaved rows of a packed matrix
  m.attr("BLOCK_BYTES") = kBlockBytes;                   // of a row of a packed matrix
  m.attr("ACTIVATION_GROUP") = kActivationGroup;         // columns of a scale of int8_per_group
  m.attr("LANES") = kLanes;                              // of a floating-point sum
  m.attr("PARTIAL_EXTRA") = kPartialExtra;  // floats after the [D] of a KV split's result
  m.attr("MAX_HEAD_DIM") = kMaxHeadDim;
  m.attr("INT16_MAX") = kInt16Max;              // largest int16 activation
  m.attr("SMALLEST_ABSMAX") = kSmallestAbsmax;  // of activations and weights that are quantised
  m.attr("GRADIENT_BLOCK") = kGradientBlock;    // tokens that share a scale of output gradients
  m.attr("GRADIENT_INT16_MAX") = kGradientLevels;
  m.attr("SMALLEST_GRADIENT") = kSmallestGradient;  // absmax of output gradients that are rounded
}

}  // namespace yocobit
