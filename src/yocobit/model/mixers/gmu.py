"""Gated memory unit (GMU): gates the memory of the last self-decoder layer.

Letters: B batch   T positions   C model width
"""

from __future__ import annotations

from torch import Tensor, nn

from yocobit.config import ModelConfig
from yocobit.model.attention import Mask
from yocobit.model.bitlinear import BitLinear
from yocobit.model.norm import gated_norm, sub_norm
from yocobit.model.rope import Positions


class GatedMemoryUnit(nn.Module):
    """y = W_out norm(m * silu(W_g x)) of the memory m (SambaY, arXiv:2507.06607).

    The norm, present with SubLN, is the paper's normalised variant. Positions are not mixed: there
    is no state, and no cache is read.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C = config.d_model
        self.eps = config.norm_eps
        self.g_proj = BitLinear(C, C, config.weights)
        self.sub_norm = sub_norm(config, C)
        self.out_proj = BitLinear(C, C, config.weights)

    def forward(
        self, x: Tensor, start: Positions, memory: Tensor, mask: Mask = None
    ) -> tuple[Tensor, Tensor, None]:
        """Gate memory (B, T, C) by x (B, T, C), position by position; the state is the memory."""
        y = gated_norm(self.g_proj(x), memory, self.sub_norm, self.eps)
        return self.out_proj(y), memory, None
