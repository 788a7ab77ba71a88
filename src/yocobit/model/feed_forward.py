"""The FFN of a block.

Letters: B batch   T positions   C model width   F feed-forward width
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from yocobit.config import FeedForwardKind, ModelConfig
from yocobit.mixers import FEED_FORWARDS
from yocobit.model.bitlinear import project, projection, sign
from yocobit.model.norm import gated_norm, sub_norm
from yocobit.model.precision import widened


class FeedForward(nn.Module):
    """y = W_down act(W_gate x, W_up x), where ACTIVATIONS has act of each kind.

    swiglu   norm(silu(gate) * up)        (arXiv:2002.05202)
    geglu    norm(gelu(gate) * up)        (gelu by its tanh approximation)
    relu2    norm(relu(gate)^2 * up)      (arXiv:2504.12285)
    sign     sign(up), without W_gate     (binary activations)

    With `swiglu_limit` L, swiglu clips gate to at most L, and up to [-L, L].
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C, d_ff, spec = config.d_model, config.d_ff, FEED_FORWARDS[config.ffn]
        self.activation = activation(config)
        self.has_gate = spec.has_gate
        self.eps = config.norm_eps
        if spec.has_gate:
            self.gate_proj = projection(config, C, d_ff)
        self.up_proj = projection(config, C, d_ff)
        self.sub_norm = sub_norm(config, d_ff) if spec.has_sub_norm else nn.Identity()
        self.down_proj = projection(config, d_ff, C)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, T, C) to (B, T, C)."""
        linears = (self.gate_proj, self.up_proj) if self.has_gate else (self.up_proj,)
        return self.down_proj(self.activation(project(x, *linears), self.sub_norm, self.eps))


def activation(config: ModelConfig) -> Callable[..., Tensor]:
    """Return the function of ACTIVATIONS for a config, with its `swiglu_limit`."""
    if config.swiglu_limit is None:
        return ACTIVATIONS[config.ffn]
    return partial(_swiglu, limit=config.swiglu_limit)


def _swiglu(
    projected: tuple[Tensor, ...], norm: nn.Module, eps: float, limit: float | None = None
) -> Tensor:
    gate, up = projected
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gated_norm(gate, up, norm, eps)


def _geglu(projected: tuple[Tensor, ...], norm: nn.Module, eps: float) -> Tensor:
    gate, up = projected
    normed: Tensor = norm(F.gelu(widened(gate), approximate="tanh") * widened(up))
    return normed.to(gate.dtype)


def _relu2(projected: tuple[Tensor, ...], norm: nn.Module, eps: float) -> Tensor:
    gate, up = projected
    # float16 ends at 65504.
    normed: Tensor = norm(F.relu(widened(gate)).square() * widened(up))
    return normed.to(gate.dtype)


def _sign(projected: tuple[Tensor, ...], norm: nn.Module, eps: float) -> Tensor:
    (up,) = projected
    return sign(up)


# Called with the projections of x (B, T, F), the gate's first, SubLN and its eps.
ACTIVATIONS: dict[FeedForwardKind, Callable[..., Tensor]] = {
    "swiglu": _swiglu,
    "geglu": _geglu,
    "relu2": _relu2,
    "sign": _sign,
    "moe": _swiglu,
}
