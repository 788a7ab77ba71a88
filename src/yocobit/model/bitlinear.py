"""Linear layers with 1-bit and 1.58-bit weights, trained straight through.

The one statement of the quantisation that training, packing and the engine share: integers are
exact in float32 here (|sum| <= 127 K < 2^24 for every K that ModelConfig admits).

Letters: M output features   K input features
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yocobit.config import WeightKind

# Keeps an all-zero row or matrix from dividing by zero; far below any trained magnitude.
SMALLEST_SCALE = 1e-12


def quantize_activations(x: Tensor, levels: int = 127) -> tuple[Tensor, Tensor]:
    """Round x (..., K) to integers in [-levels, levels] per row (absmax, half to even).

    Returns the integers in x's dtype and the scale (..., 1); integers * scale approximates x.
    """
    largest = x.abs().amax(dim=-1, keepdim=True).clamp_min(SMALLEST_SCALE)
    return (x * (levels / largest)).round(), largest / levels


def quantize_weight(weight: Tensor, kind: WeightKind) -> tuple[Tensor, Tensor]:
    """Return integer weights (M, K) in {-1, 0, +1} and their scale, a scalar tensor.

    "ternary" is BitNet b1.58 (arXiv:2402.17764), "sign" is BitNet b1 (arXiv:2310.11453).
    """
    scale = weight.abs().mean().clamp_min(SMALLEST_SCALE)
    if kind == "ternary":
        return (weight / scale).round().clamp(-1, 1), scale
    if kind == "sign":
        return torch.where(weight - weight.mean() > 0, 1.0, -1.0).to(weight.dtype), scale
    raise ValueError(f"weight kind must be 'ternary' or 'sign' but is {kind!r}")


def fake_quantize(x: Tensor, levels: int) -> Tensor:
    """Round the last dimension of x as a cache with that many levels would; gradient 1."""
    codes, scale = quantize_activations(x.detach(), levels)
    return x + (codes * scale - x.detach())


class _QuantizedLinear(torch.autograd.Function):
    """y = (x_codes w_codes^T) s_x s_w for each weight; all roundings have gradient 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: WeightKind, *weights: Tensor) -> tuple[Tensor, ...]:
        x_codes, x_scale = quantize_activations(x)
        quantized = [quantize_weight(weight, kind) for weight in weights]
        w_codes = torch.cat([codes for codes, _ in quantized])  # (sum of M, K)
        w_scales = [scale for _, scale in quantized]
        ctx.sizes = [len(weight) for weight in weights]
        ctx.is_fast = uses_fast_products(x)
        if ctx.is_fast:
            x_codes, w_codes = x_codes.to(torch.int8), w_codes.to(torch.int8)
            sums = torch._int_mm(x_codes.flatten(0, -2), w_codes.mT)
            sums = sums.unflatten(0, x.shape[:-1])
        else:
            sums = F.linear(x_codes, w_codes)
        ctx.save_for_backward(x_codes, x_scale, w_codes, *w_scales)
        parts = sums.split(ctx.sizes, dim=-1)
        return tuple(part * (x_scale * s) for part, s in zip(parts, w_scales, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_codes, x_scale, w_codes, *w_scales = ctx.saved_tensors
        dtype = torch.bfloat16 if ctx.is_fast else x_scale.dtype
        grad = torch.cat([g.to(dtype).flatten(0, -2) for g in grads], dim=-1)  # (N, sum of M)
        x = (x_codes.to(dtype) * x_scale.to(dtype)).flatten(0, -2)
        w_scale = torch.cat([s.expand(m) for s, m in zip(w_scales, ctx.sizes, strict=True)])
        w = w_codes.to(dtype) * w_scale.to(dtype)[:, None]
        grad_x = (grad @ w).to(x_scale.dtype).unflatten(0, grads[0].shape[:-1])
        grad_w = (grad.mT @ x).to(x_scale.dtype).split(ctx.sizes)
        return grad_x, None, *grad_w


def uses_fast_products(x: Tensor) -> bool:
    """Whether products may be of int8 and bfloat16: torch.set_float32_matmul_precision allows it.

    Forward, integers are exact either way; gradients then have the precision of bfloat16.
    """
    is_allowed = torch.get_float32_matmul_precision() == "medium"
    return is_allowed and x.device.type == "cpu" and x.dtype == torch.float32


class BitLinear(nn.Linear):
    """y = x W^T without bias, W quantised to `kind` and x to int8 per row.

    Master weights stay in floating point; kind "dense" quantises nothing. An nn.Linear to those
    who look for one, such as PEFT.
    """

    def __init__(self, in_features: int, out_features: int, kind: WeightKind) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.kind: WeightKind = kind

    def reset_parameters(self) -> None:
        """Draw nothing: the model draws all weights, once."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., K) to (..., M)."""
        (y,) = project(x, self)
        return y

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, kind={self.kind!r}"


def project(x: Tensor, *linears: BitLinear) -> tuple[Tensor, ...]:
    """Map x (..., K) through linears of one kind to (..., M) each, rounding x once."""
    if not all(isinstance(linear, BitLinear) for linear in linears):
        return tuple(linear(x) for linear in linears)  # adapters wrap some
    kind = linears[0].kind
    if kind == "dense":
        return tuple(F.linear(x, linear.weight) for linear in linears)
    weights = [linear.weight for linear in linears]
    ys: tuple[Tensor, ...] = _QuantizedLinear.apply(x, kind, *weights)  # type: ignore[no-untyped-call]
    return ys


class _Sign(torch.autograd.Function):
    """sign(x) with sign(0) = -1; gradient 1 where |x| <= 1, else 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x > 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 1)


def sign(x: Tensor) -> Tensor:
    """Binarise x to -1 and +1, straight through where |x| <= 1."""
    y: Tensor = _Sign.apply(x)  # type: ignore[no-untyped-call]
    return y
