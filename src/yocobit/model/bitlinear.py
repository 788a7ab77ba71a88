"""Linear layers with 1-bit and 1.58-bit weights, trained straight through.

Their products are native where there are kernels for them, plain PyTorch elsewhere: the same
integers, scales and roundings (native_products.py, plain_products.py).

Letters: M output features   K input features
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yocobit.config import WeightKind
from yocobit.model import native_products
from yocobit.model.plain_products import PlainProducts


def uses_fast_products(x: Tensor) -> bool:
    """Whether products may be of bfloat16: torch.set_float32_matmul_precision allows it."""
    return _allows_fast_products() and x.device.type == "cpu" and x.dtype == torch.float32


# torch.compile cannot trace the question, and a run asks it of one setting only.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _allows_fast_products() -> bool:
    return torch.get_float32_matmul_precision() == "medium"


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
        if not uses_fast_products(x):
            return tuple(F.linear(x, linear.weight) for linear in linears)
        with torch.autocast("cpu", torch.bfloat16):
            return tuple(F.linear(x, linear.weight).to(x.dtype) for linear in linears)
    weights: list[Tensor] = [linear.weight for linear in linears]
    kernels = native_products.kernels_for(x, weights)
    if kernels != native_products.PYTORCH:
        return tuple(native_products.project(x, weights, kind == "ternary", kernels))
    ys: tuple[Tensor, ...] = PlainProducts.apply(x, kind, *weights)  # type: ignore[no-untyped-call]
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
