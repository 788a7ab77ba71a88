#include "engine/feed_forward.h"

#include "engine/experts.h"

namespace yocobit {
namespace {

void swiglu(const Kernels& kernels, const float* gate, const float* up, int n, float* y) {
  kernels.silu_multiply(gate, up, n, y);
}

void geglu(const Kernels& kernels, const float* gate, const float* up, int n, float* y) {
  kernels.gelu_multiply(gate, up, n, y);
}

void relu2(const Kernels& kernels, const float* gate, const float* up, int n, float* y) {
  kernels.relu2_multiply(gate, up, n, y);
}

void sign(const Kernels& kernels, const float*, const float* up, int n, float* y) {
  kernels.sign(up, n, y);
}

const FeedForwardSpec kFeedForwards[] = {
    {.name = "swiglu", .has_gate = true, .has_sub_norm = true, .activate = swiglu},
    {.name = "geglu", .has_gate = true, .has_sub_norm = true, .activate = geglu},
    {.name = "relu2", .has_gate = true, .has_sub_norm = true, .activate = relu2},
    // Its activation is -1 or +1 already, which needs no norm.
    {.name = "sign", .has_gate = false, .has_sub_norm = false, .activate = sign},
    {.name = "moe",
     .has_gate = true,
     .has_sub_norm = true,
     .has_experts = true,
     .max_batch_tokens = 256,
     .activate = swiglu},
};

}  // namespace

std::span<const FeedForwardSpec> feed_forward_specs() { return kFeedForwards; }

// NaN stays NaN.
void activate(const ForwardPass& pass, float* gate, float* up, int n) {
  const ModelConfig& config = pass.model.config;
  if (config.swiglu_limit) {
    const float limit = *config.swiglu_limit;
    for (int i = 0; i < n; ++i) {
      gate[i] = gate[i] > limit ? limit : gate[i];
      up[i] = up[i] > limit ? limit : up[i] < -limit ? -limit : up[i];
    }
  }
  config.ffn->activate(pass.kernels, gate, up, n, gate);
}

void feed_forward(const ForwardPass& pass, const Layer& layer) {
  if (pass.model.config.ffn->has_experts) return mixture_of_experts(pass, layer);
  Workspace& ws = pass.workspace;
  const int F = layer.ffn_up.m;
  const auto activate_part = [&](int row_begin, int row_end, int begin, int end) {
    for (int row = row_begin; row < row_end; ++row) {
      const size_t at = static_cast<size_t>(row) * F + begin;
      activate(pass, &ws.gate[at], &ws.up[at], end - begin);
    }
  };
  const LinearOutput up = {&layer.ffn_up, ws.up.get()};
  if (pass.model.config.ffn->has_gate) {
    pass.project(ws.stream.get(), layer.ffn_norm, {{&layer.ffn_gate, ws.gate.get()}, up},
                 activate_part);
  } else {
    pass.project(ws.stream.get(), layer.ffn_norm, {up}, activate_part);
  }
  pass.add_to_stream(layer.ffn_down, ws.gate.get(), layer.ffn_sub_norm, layer.ffn_post_norm);
}

}  // namespace yocobit
