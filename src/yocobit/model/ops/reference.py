"""The operators of native.py in plain PyTorch, for any device and precision.

Integer sums are exact in float32: |sum| <= 127 K < 2^24 for every K that ModelConfig admits.

Letters: M output features   K input features   N tokens
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from yocobit import _native
from yocobit.config import WeightKind
from yocobit.model.precision import without_autocast
from yocobit.model.quantization import quantize_activations, quantize_weight

# Constants of the rounding of output gradients.
_BLOCK_TOKENS, _INT16_MAX = _native.GRADIENT_BLOCK, _native.GRADIENT_INT16_MAX
_MIN_ABSMAX = _native.SMALLEST_GRADIENT


class Matmul(torch.autograd.Function):
    """y = (x_codes w_codes^T) s_x s_w for each weight; rounding has gradient 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: WeightKind, *weights: Tensor) -> tuple[Tensor, ...]:
        codes, x_scale = quantize_activations(x)
        ctx.kind = kind
        ctx.save_for_backward(codes, x_scale, *weights)
        ys = []
        for weight in weights:
            w_codes, w_scale = quantize_weight(weight, kind)
            ys.append(F.linear(codes, w_codes) * (x_scale * w_scale.flatten()))
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        codes, x_scale, *weights = ctx.saved_tensors
        grad_x, grad_ws = straight_through_gradients(
            [grad.reshape(-1, grad.shape[-1]) for grad in grads],
            codes.reshape(-1, codes.shape[-1]),
            x_scale.reshape(-1, 1),
            weights,
            ctx.kind,
        )
        return grad_x.reshape(codes.shape), None, *grad_ws


@without_autocast
def straight_through_gradients(
    grads: list[Tensor], codes: Tensor, x_scale: Tensor, weights: list[Tensor], kind: WeightKind
) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients of x (N, K) and of weights (M, K) from those of the outputs (N, M).

    Differentiable with respect to grads; codes (N, K), their scale (N, 1) and the quantised
    weights are constants.
    """
    x = codes.to(x_scale.dtype)
    grad_x, grad_ws = torch.zeros_like(x), []
    for grad, weight in zip(grads, weights, strict=True):
        w_codes, w_scale = quantize_weight(weight.detach(), kind)
        grad_x = grad_x + grad @ (w_codes * w_scale)
        grad_ws.append(quantize_gradients(grad * x_scale).mT @ x)
    return grad_x, grad_ws


def quantize_gradients(grads: Tensor) -> Tensor:
    """Round float32 gradients (N, M) to int16 with a scale per column and 256 tokens.

    The native weight gradient rounds the same way. Rounding has gradient 1.
    """
    if grads.dtype != torch.float32 or grads.numel() == 0:
        return grads
    N, M = grads.shape
    blocks = F.pad(grads.detach(), (0, 0, 0, -N % _BLOCK_TOKENS)).view(-1, _BLOCK_TOKENS, M)
    largest = blocks.abs().amax(dim=1, keepdim=True).clamp(min=_MIN_ABSMAX)
    codes = (blocks * (_INT16_MAX / largest)).round()
    return (codes * (largest / _INT16_MAX)).view(-1, M)[:N] + (grads - grads.detach())


def norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return x r weight and r = 1 / sqrt(mean(x^2) + eps), (..., K) and (..., 1), of x (..., K)."""
    r = (x.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
    return (x * r).mul_(weight), r


def norm_gradient(grad: Tensor, x: Tensor, weight: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x (..., K) and weight (K,)."""
    products = (grad * x).flatten(0, -2)  # (N, K)
    grad_weight = products.mT @ r.flatten()
    # d r / d x_k = -r^3 x_k / K
    slope = (products @ weight / -x.shape[-1]).view_as(r) * r**3
    return (grad * r).mul_(weight).addcmul_(x, slope), grad_weight
