// The fields of yocobit.config.ModelConfig that the engine reads. Python has validated them.
//
// Letters:  C model width   F feed-forward width   H query heads   G KV heads   D head size
//           V vocabulary
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace yocobit {

struct FeedForwardSpec;
struct MixerSpec;

enum class CrossAttention { full, index };
enum class RopeKind { interleaved, half, none };

struct Heads {
  int n_heads;     // H
  int n_kv_heads;  // G
  int head_dim;    // D

  int kv_width() const { return n_kv_heads * head_dim; }
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

  Heads heads() const { return {n_heads, n_kv_heads, d_model / n_heads}; }
  Heads self_heads() const { return {n_self_heads, n_self_kv_heads, d_model / n_self_heads}; }
  Heads retention_heads() const { return {n_self_heads, n_self_heads, d_model / n_self_heads}; }
  int cross_blocks() const { return cross_positions / kAttentionTile; }
};

}  // namespace yocobit
