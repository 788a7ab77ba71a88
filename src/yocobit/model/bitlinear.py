"""Linear layers with 1-bit and 1.58-bit weights, trained with a straight-through estimator.

Weights-only quantisation (A16) multiplies unquantised activations by quantised weights, in floats.

Letters: M output features   K input features
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yocobit.config import ModelConfig, WeightKind
from yocobit.model.module_calls import has_own_call
from yocobit.model.norm import RMSNorm
from yocobit.model.ops import native, reference
from yocobit.model.ops.dispatch import PYTORCH, matmul_kernels
from yocobit.model.precision import in_float32
from yocobit.model.quantization import straight_through_weight
from yocobit.packing.formats import INT8_PER_TOKEN, formats_of
from yocobit.packing.scales import PerTensor


def uses_bfloat16_matmul(x: Tensor) -> bool:
    """Whether float32 matmuls may run in bfloat16: set by torch.set_float32_matmul_precision."""
    return _allows_bfloat16_matmul() and x.device.type == "cpu" and x.dtype == torch.float32


# torch.compile cannot trace the getter, and the setting does not change during a run.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _allows_bfloat16_matmul() -> bool:
    return torch.get_float32_matmul_precision() == "medium"


class BitLinear(nn.Linear):
    """y = (x_q W_q^T) s_x s_w + bias: W quantised to `kind`, x to int8 per row.

    BitNet b1.58 (arXiv:2402.17764), BitNet b1 (arXiv:2310.11453). Master weights stay in floating
    point; kinds of weights-only quantisation do not quantise x, and "dense" quantises nothing. With
    `norm_eps`, the layer normalises x by an RMSNorm of its own first. It is a subclass of nn.Linear
    so that adapters such as PEFT's accept it.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kind: WeightKind,
        bias: bool = False,
        norm_eps: float | None = None,
        n_blocks: int = 1,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.n_blocks = n_blocks  # matrices of equal shape stacked by rows, one per expert
        self.norm = None if norm_eps is None else RMSNorm(in_features, eps=norm_eps)
        self.kind: WeightKind = kind
        format = formats_of(kind)[0]
        self.is_quantized = format.is_integer
        self.quantizes_inputs = format.activations is INT8_PER_TOKEN
        self.has_one_scale = isinstance(format.scale, PerTensor)

    def reset_parameters(self) -> None:
        """Do nothing: Decoder initialises all weights, once."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., K) to (..., M)."""
        (y,) = _project(x if self.norm is None else self.norm(x), [self])
        return y

    def rounded_weight(self) -> Tensor:
        """Return the weight (M, K) that multiplies x: quantised, with gradient 1."""
        return straight_through_weight(self.weight, self.kind) if self.is_quantized else self.weight

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, kind={self.kind!r}"


def projection(
    config: ModelConfig, in_features: int, out_features: int, bias: bool = False, n_blocks: int = 1
) -> BitLinear:
    """Return a projection of self-attention or of an FFN."""
    norm_eps = config.projection_norm_eps if config.projection_norms else None
    return BitLinear(in_features, out_features, config.weights, bias, norm_eps, n_blocks)


def project(x: Tensor, *linears: BitLinear) -> tuple[Tensor, ...]:
    """Map x (..., K) through linears of one kind to (..., M) each.

    x is quantised once for all of them, unless a module has a norm of its own, was replaced (by an
    adapter) or has hooks (of offloading).
    """
    if all(has_own_call(linear, BitLinear) and linear.norm is None for linear in linears):
        return _project(x, linears)
    return tuple(linear(x) for linear in linears)


def _project(x: Tensor, linears: Sequence[BitLinear]) -> tuple[Tensor, ...]:
    ys = _multiply(x, linears)
    return tuple(
        y if linear.bias is None else y + linear.bias for y, linear in zip(ys, linears, strict=True)
    )


def _multiply(x: Tensor, linears: Sequence[BitLinear]) -> tuple[Tensor, ...]:
    first = linears[0]
    if not first.quantizes_inputs:
        return tuple(float_matmul(x, linear.rounded_weight()) for linear in linears)
    ys = _quantized(x, first.kind, first.has_one_scale, *(linear.weight for linear in linears))
    return tuple(y.to(x.dtype) for y in ys)


def float_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """Return x (..., K) times weight (M, K), in the precision of matmuls."""
    if not uses_bfloat16_matmul(x):
        return F.linear(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        return F.linear(x, weight).to(x.dtype)


@in_float32
def _quantized(
    x: Tensor, kind: WeightKind, has_one_scale: bool, *weights: Tensor
) -> Sequence[Tensor]:
    # The training kernels support one scale per matrix only.
    kernels = matmul_kernels(x, weights) if has_one_scale else PYTORCH
    if kernels != PYTORCH:
        return native.matmul(x, list(weights), kind, kernels)
    ys: tuple[Tensor, ...] = reference.Matmul.apply(x, kind, *weights)  # type: ignore[no-untyped-call]
    return ys


def sign(x: Tensor) -> Tensor:
    """Binarise x to -1 and +1, straight through where |x| <= 1."""
    y: Tensor = _Sign.apply(x)  # type: ignore[no-untyped-call]
    return y


class _Sign(torch.autograd.Function):
    """sign(x) with sign(0) = -1; gradient 1 where |x| <= 1, 0 elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x > 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 1)
