// The feed-forward half of a layer: stream += W_down norm(act(W_gate x) * (W_up x)), or experts
// that are each such a function (experts.h).
#pragma once

#include "engine/forward_pass.h"

namespace yocobit {

void feed_forward(const ForwardPass& pass, const Layer& layer);

// gate = act(gate) * up, or act(up), of n values, after the limits of SwiGLU.
void activate(const ForwardPass& pass, float* gate, float* up, int n);

}  // namespace yocobit
