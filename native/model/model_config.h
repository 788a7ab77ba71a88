// The fields of yocobit.config.ModelConfig that the engine reads. Python has validated them.
//
// Letters:  C model width   F feed-forward width   H query heads   G KV heads   D head size
//           V vocabulary
#pragma once

#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace yocobit {

struct FeedForwardSpec;
struct MixerSpec;

enum class CrossAttention { full, index };
enum class RopeKind { interleaved, half, none };
enum class QKNorm { none, before_rope, after_rope };

struct Heads {
  int n_heads;     // H
  int n_kv_heads;  // G
  int head_dim;    // D

  int width() const { return n_heads * head_dim; }
  int kv_width() const { return n_kv_heads * head_dim; }

  // The size of a head in KV caches and in attention kernels: whole lanes, the last values 0.
  int padded_dim() const { return (head_dim + kLanes - 1) / kLanes * kLanes; }
};

struct ModelConfig {
  int vocab_size, d_model, d_ff;
  int n_heads, n_kv_heads;            // of full and cross attention
  int n_self_heads, n_self_kv_heads;  // of retention and sliding-window attention
  int window;                         // positions that sliding-window attention sees
  std::vector<const MixerSpec*> layers;
  const FeedForwardSpec* ffn;
  bool sub_norm, tie_embeddings, scale_embedding;
  RopeKind retention_rope, window_rope, full_rope, cross_rope;
  double rope_theta;
  float norm_eps;
  CrossAttention cross_attention;
  int cross_positions;  // that a token attends to

  // Features of models whose layers are all full or sliding-window attention.
  std::optional<int> head_size;          // D; otherwise d_model divided by the query heads
  std::optional<float> attention_scale;  // otherwise 1 / sqrt(D)
  QKNorm qk_norm = QKNorm::none;
  bool qkv_bias = false;
  std::vector<double> window_rope_frequencies, full_rope_frequencies;  // empty: from rope_theta
  double rope_factor = 1.0;      // multiplies cosines and sines
  std::vector<int> nope_layers;  // indices of the layers without RoPE
  bool projection_norms = false;
  float projection_norm_eps = 1e-6f;

  // Features of all models.
  bool head_norm = false, post_norms = false;
  std::optional<float> embedding_scale;  // otherwise as scale_embedding
  float residual_scale = 1.0f, logit_scale = 1.0f;
  int n_experts = 0, n_active_experts = 0;  // of an FFN with experts
  std::optional<float> swiglu_limit;        // gate <= limit, -limit <= up <= limit
  bool exact_activations = false;           // int16 instead of int8 for weights-only formats

  Heads heads() const { return {n_heads, n_kv_heads, head_dim(n_heads)}; }
  Heads self_heads() const { return {n_self_heads, n_self_kv_heads, head_dim(n_self_heads)}; }
  Heads retention_heads() const { return {n_self_heads, n_self_heads, d_model / n_self_heads}; }
  int head_dim(int n_query_heads) const { return head_size.value_or(d_model / n_query_heads); }
  int activation_parts() const { return exact_activations ? 2 : 1; }  // GroupedRows::n_parts
  int cross_blocks() const { return cross_positions / kAttentionTile; }
  float score_scale(const Heads& heads) const {
    return attention_scale.value_or(1.0f / std::sqrt(static_cast<float>(heads.head_dim)));
  }
  float embedding_factor() const {
    return embedding_scale.value_or(scale_embedding ? std::sqrt(static_cast<float>(d_model))
                                                    : 1.0f);
  }
};

}  // namespace yocobit
