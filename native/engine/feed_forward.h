// The feed-forward half of a layer: stream += W_down norm(act(W_gate x) * (W_up x)), or a mixture
// of such experts (experts.h).
#pragma once

#include "engine/forward_pass.h"

namespace yocobit {

void feed_forward(const ForwardPass& pass, const Layer& layer);

// gate = act(gate) * up, or act(up), of n values, which ModelConfig::swiglu_limit clamps first.
void activate(const ForwardPass& pass, float* gate, float* up, int n);

}  // namespace yocobit
