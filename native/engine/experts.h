// The feed-forward half of a layer with experts: y = sum over the experts that a router chose for
// the token of weight * W_down norm(act(W_gate x) * (W_up x)).
//
// The router chooses the experts with the largest logits W_router x, of equal ones the first. Their
// weights are the softmax over the logits of the chosen ones. The sum starts with the largest
// weight, by fused multiply-add.
#pragma once

#include "engine/forward_pass.h"

namespace yocobit {

// stream += residual_scale * y.
void mixture_of_experts(const ForwardPass& pass, const Layer& layer);

}  // namespace yocobit
