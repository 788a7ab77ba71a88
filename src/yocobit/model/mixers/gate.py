"""Gate: the stateless mixer of the earliest YOCO + BitNet demonstrations.

Letters: B batch   T positions   C model width
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yocobit.config import ModelConfig
from yocobit.model.attention import Mask
from yocobit.model.bitlinear import BitLinear
from yocobit.model.rope import Positions


class Gate(nn.Module):
    """y = x * sigmoid(W x).

    Positions are not mixed: there is no state. The memory is y itself.
    """

    def __init__(self, config: ModelConfig, returns_memory: bool = False) -> None:
        super().__init__()
        C = config.d_model
        self.returns_memory = returns_memory
        self.gate_proj = BitLinear(C, C, config.weights)

    def forward(
        self, x: Tensor, start: Positions, state: None, mask: Mask = None
    ) -> tuple[Tensor, None, Tensor | None]:
        """Multiply x (B, T, C) by its own gate, position by position."""
        y = x * torch.sigmoid(self.gate_proj(x))
        return y, None, y if self.returns_memory else None
