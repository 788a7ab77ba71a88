"""Products with ternary and sign weights in plain PyTorch, for any device and precision.

Integers are exact in float32 here: |sum| <= 127 K < 2^24 for every K that ModelConfig admits.

Letters: M output features   K input features   N tokens
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from yocobit.config import WeightKind
from yocobit.model.quantization import quantize_activations, quantize_weight

_BLOCK, _LEVELS, _SMALLEST = 256, 32767, 1e-30  # as native/training_*.{h,inc} have them


class PlainProducts(torch.autograd.Function):
    """y = (x_codes w_codes^T) s_x s_w for each weight; all roundings have gradient 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: WeightKind, *weights: Tensor) -> tuple[Tensor, ...]:
        codes, x_scale = quantize_activations(x)
        ctx.kind = kind
        ctx.save_for_backward(codes, x_scale, *weights)
        ys = []
        for weight in weights:
            w_codes, w_scale = quantize_weight(weight, kind)
            ys.append(F.linear(codes, w_codes) * (x_scale * w_scale))
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


def straight_through_gradients(
    grads: list[Tensor], codes: Tensor, x_scale: Tensor, weights: list[Tensor], kind: WeightKind
) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients of x (N, K) and of weights (M, K) from those of the outputs (N, M).

    By operations that can be differentiated with respect to grads; codes (N, K), their scale
    (N, 1) and what weights are rounded to count as constants.
    """
    x = codes.to(x_scale.dtype)
    grad_x, grad_ws = torch.zeros_like(x), []
    for grad, weight in zip(grads, weights, strict=True):
        w_codes, w_scale = quantize_weight(weight.detach(), kind)
        grad_x = grad_x + grad @ (w_codes * w_scale)
        grad_ws.append(rounded_gradients(grad * x_scale).mT @ x)
    return grad_x, grad_ws


def rounded_gradients(grads: Tensor) -> Tensor:
    """Round gradients (N, M) in float32 to int16, as the native kernels do for those of weights:
    with a scale for each column and 256 tokens. Rounding has gradient 1.
    """
    if grads.dtype != torch.float32 or grads.numel() == 0:
        return grads
    N, M = grads.shape
    blocks = F.pad(grads.detach(), (0, 0, 0, -N % _BLOCK)).view(-1, _BLOCK, M)
    largest = blocks.abs().amax(dim=1, keepdim=True).clamp(min=_SMALLEST)
    codes = (blocks * (_LEVELS / largest)).round()
    return (codes * (largest / _LEVELS)).view(-1, M)[:N] + (grads - grads.detach())
