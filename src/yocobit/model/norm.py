"""RMSNorm (arXiv:1910.07467), alone and fused with the SiLU gate before it.

Letters: B batch   T positions   N tokens   K features   H heads   D head size
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yocobit.config import ModelConfig
from yocobit.model.module_calls import has_own_call
from yocobit.model.ops import native, reference
from yocobit.model.ops.dispatch import has_row_kernels
from yocobit.model.precision import in_float32, widened, without_autocast


class RMSNorm(nn.RMSNorm):
    """torch.nn.RMSNorm over the last dimension, with one pass over memory in each direction."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _rms_norm(x, self.weight, self.eps)
        return y.to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    """y = x r w with r = 1 / sqrt(mean(x^2) + eps)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.is_native = has_row_kernels(x, weight)
        if ctx.is_native:
            y, r = native.norm(_rows(x), weight, eps)
            y = y.view_as(x)
        else:
            y, r = reference.norm(x, weight, eps)
        ctx.save_for_backward(x, r, weight)
        return y

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, r, weight = ctx.saved_tensors
        if ctx.is_native:
            grad_x, grad_weight = native.norm_gradient(_rows(grad), _rows(x), weight, r)
            return grad_x.view_as(x), grad_weight, None
        return *reference.norm_gradient(grad, x, weight, r), None


_rms_norm = in_float32(_RMSNorm.apply)


def sub_norm(config: ModelConfig, size: int) -> nn.Module:
    """Return SubLN, the RMSNorm of a projection's input (..., size), or Identity if disabled."""
    return RMSNorm(size, eps=config.norm_eps) if config.sub_norm else nn.Identity()


def gated_norm(gate: Tensor, up: Tensor, norm: nn.Module, eps: float) -> Tensor:
    """Return norm(silu(gate) * up) for gate (..., K); norm is an RMSNorm or an Identity.

    up is (..., K), or (B, H, T, D) for gate (B, T, H * D): then each of its heads is normalised
    without a weight. A norm with hooks, such as those of offloading, is called as a module.
    """
    y: Tensor = _gated_norm(gate, up, norm, eps)
    return y.to(gate.dtype)


@in_float32
def _gated_norm(gate: Tensor, up: Tensor, norm: nn.Module, eps: float) -> Tensor:
    if has_own_call(norm, RMSNorm if isinstance(norm, RMSNorm) else nn.Identity):
        weight = widened(norm.weight) if isinstance(norm, RMSNorm) else None
        if has_row_kernels(gate, up, *([] if weight is None else [weight])):
            y: Tensor = _GatedNorm.apply(gate, up, weight, eps)  # type: ignore[no-untyped-call]
            return y
    if up.ndim > gate.ndim:
        up = head_norm(up, eps)
    normed: Tensor = norm(F.silu(gate) * up)
    return normed


def head_norm(x: Tensor, eps: float) -> Tensor:
    """Return x (B, H, T, D) as (B, T, H * D), with each head normalised without a weight."""
    return F.rms_norm(widened(x), x.shape[-1:], eps=eps).transpose(1, 2).flatten(2)


class _GatedNorm(torch.autograd.Function):
    """norm(silu(gate) * up) by the native kernels; saves gate and up, and recomputes the rest."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        ctx.has_heads = up.ndim > gate.ndim
        # (H, N, D), as chunkwise retention returns it in memory
        up = up.transpose(0, 1).flatten(1, 2).contiguous() if ctx.has_heads else _rows(up)[None]
        y, r, head_r = native.gate(_rows(gate), up, weight, eps, ctx.has_heads)
        ctx.save_for_backward(gate, up, weight, r, head_r)
        return y.view_as(gate)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight, r, head_r = ctx.saved_tensors
        grad_gate, grad_up, grad_weight = native.gate_gradient(
            _rows(grad), _rows(gate), up, weight, r, head_r
        )
        grad_up = grad_up.view_as(gate)
        if ctx.has_heads:
            grad_up = grad_up.unflatten(-1, (len(up), -1)).transpose(1, 2)
        return grad_gate.view_as(gate), grad_up, None if weight is None else grad_weight, None


def _rows(x: Tensor) -> Tensor:
    """Return x (..., K) as (N, K), contiguous."""
    return x.reshape(-1, x.shape[-1]).contiguous()
