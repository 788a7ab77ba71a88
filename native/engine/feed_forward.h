// The feed-forward half of a layer: stream += W_down norm(act(W_gate x) * (W_up x)).
#pragma once

#include "engine/forward_pass.h"

namespace yocobit {

void feed_forward(const ForwardPass& pass, const Layer& layer);

}  // namespace yocobit
