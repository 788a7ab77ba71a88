// The closed sets of token mixers and FFN kinds, one record each: the twins of
// src/yocobit/mixers.py.
//
// A record holds everything that loading, session state and the decoder need; no other code tests
// which kind a layer has. The tables are next to the forward passes: engine/mixers/mixers.cpp and
// engine/feed_forward.cpp.
//
// Letters:  N tokens   C model width   F feed-forward width   H query heads   D head size
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/linear.h"
#include "model/model_config.h"

namespace yocobit {

struct ForwardPass;  // engine/forward_pass.h
struct Layer;        // model/packed_model.h

// A matrix (rows, columns) of a mixer: tensor layers.I.mixer.NAME.weight.
struct MixerParameter {
  const char* name;
  Linear Layer::* linear;
  int (*rows)(const ModelConfig& config);
  int (*columns)(const ModelConfig& config);
  bool is_float32 = false;  // never quantised, in any model
  bool has_bias = false;    // layers.I.mixer.NAME.bias, if the model has qkv_bias
};

// The keys and values that a layer attends to: of all positions, of the last `window` positions,
// those that all cross layers share, or none.
enum class KvCacheKind { none, per_token, ring, shared };

struct MixerSpec {
  const char* name;
  bool is_cross_decoder;  // false: of the self-decoder
  std::span<const MixerParameter> parameters;
  bool has_sub_norm;  // of the input of out_proj, if the model has SubLN
  Heads (ModelConfig::*heads)() const = nullptr;                  // of attention and retention
  RopeKind ModelConfig::* rope = nullptr;                         // of queries and keys
  std::vector<double> ModelConfig::* rope_frequencies = nullptr;  // if they may be explicit
  KvCacheKind kv_cache = KvCacheKind::none;
  int64_t (*state_values)(const ModelConfig& config) = nullptr;  // of a float32 recurrent state
  bool reads_memory = false;                                     // workspace.memory

  // Attention over the layer's own K and V.
  bool is_self_attention() const {
    return kv_cache == KvCacheKind::per_token || kv_cache == KvCacheKind::ring;
  }

  // stream += mixer(norm(stream)) for the rows of a batch. A self-decoder mixer also
  // writes its output before gate and output projection to workspace.y, for gated memory units.
  void (*forward)(const ForwardPass& pass, const Layer& layer, int index);
};

struct FeedForwardSpec {
  const char* name;
  bool has_gate;               // act(W_gate x) * (W_up x), not act(W_up x)
  bool has_sub_norm;           // of the input of down_proj, if the model has SubLN
  bool has_experts = false;    // of which a router selects k per token
  int max_batch_tokens = 128;  // of one forward pass

  // y[i] = act(gate[i]) * up[i], or act(up[i]); y may be gate or up.
  void (*activate)(const Kernels& kernels, const float* gate, const float* up, int n, float* y);
};

std::span<const MixerSpec> mixer_specs();
std::span<const FeedForwardSpec> feed_forward_specs();

}  // namespace yocobit
