// The feed-forward half of a layer with experts (MoE): y = sum over the top-k experts e of
// p_e W_down norm(act(W_gate x) * (W_up x)), with the matrices of e.
//
// The top-k experts of a token have the largest logits W_router x; ties are broken by expert index.
// The weights p are the softmax of their logits. The sum is by fused multiply-add, in order of
// descending weight.
#pragma once

#include "engine/forward_pass.h"

namespace yocobit {

// stream += residual_scale * y.
void mixture_of_experts(const ForwardPass& pass, const Layer& layer);

}  // namespace yocobit
