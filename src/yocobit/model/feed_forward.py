"""The FFN of a block.

Letters: B batch   T positions   C model width   F feed-forward width
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from yocobit.config import ModelConfig
from yocobit.mixers import FEED_FORWARDS
from yocobit.model.bitlinear import BitLinear, project, sign
from yocobit.model.norm import gated_norm, sub_norm


class FeedForward(nn.Module):
    """The FFN of one kind:

    swiglu   W_down norm(silu(W_gate x) * (W_up x))        (arXiv:2002.05202)
    relu2    W_down norm(relu(W_gate x)^2 * (W_up x))      (arXiv:2504.12285)
    sign     W_down sign(W_up x)                           (binary activations)
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C, d_ff, spec = config.d_model, config.d_ff, FEED_FORWARDS[config.ffn]
        self.kind = spec.name
        self.eps = config.norm_eps
        if spec.has_gate:
            self.gate_proj = BitLinear(C, d_ff, config.weights)
        self.up_proj = BitLinear(C, d_ff, config.weights)
        self.sub_norm = sub_norm(config, d_ff) if spec.has_sub_norm else nn.Identity()
        self.down_proj = BitLinear(d_ff, C, config.weights)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, T, C) to (B, T, C)."""
        if self.kind == "sign":
            return self.down_proj(sign(self.up_proj(x)))
        gate, up = project(x, self.gate_proj, self.up_proj)
        if self.kind == "swiglu":
            return self.down_proj(gated_norm(gate, up, self.sub_norm, self.eps))
        return self.down_proj(self.sub_norm(F.relu(gate).square() * up))
