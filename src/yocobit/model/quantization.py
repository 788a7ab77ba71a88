"""Quantisers of weights and activations, for training and packing.

The engine and the native training kernels round the same way.

Letters: M output features   K input features
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from yocobit import _native
from yocobit.config import WeightKind
from yocobit.model.precision import widened

# Lower bound of an absmax: an all-zero row or matrix does not divide by zero.
SMALLEST_SCALE = _native.SMALLEST_ABSMAX


def quantize_activations(x: Tensor, levels: int = 127) -> tuple[Tensor, Tensor]:
    """Round x (..., K) to integers in [-levels, levels] per row (absmax, half to even).

    Returns the integers in x's dtype and the scale (..., 1); integers * scale approximates x.
    """
    largest = x.abs().amax(dim=-1, keepdim=True).clamp_min(SMALLEST_SCALE)
    # Not levels / largest, which PyTorch computes as levels times a rounded reciprocal.
    return (x * (torch.full_like(largest, levels) / largest)).round(), largest / levels


def quantize_weight(weight: Tensor, kind: WeightKind) -> tuple[Tensor, Tensor]:
    """Return integer weights (M, K) in {-1, 0, +1} and their scale, a scalar or (M, 1) tensor."""
    if kind not in QUANTIZERS:
        raise ValueError(f"weight kind must be quantised but is {kind!r}")
    scale_of, integers_of = QUANTIZERS[kind]
    scale = scale_of(weight)
    return integers_of(weight, scale), scale


def weight_scale(weight: Tensor) -> Tensor:
    """Return mean|W| of a weight (M, K), a scalar tensor: the scale of a matrix."""
    return weight.abs().mean().clamp_min(SMALLEST_SCALE)


def _row_scales(weight: Tensor) -> Tensor:
    return weight.abs().mean(dim=1, keepdim=True).clamp_min(SMALLEST_SCALE)


def _ternary(weight: Tensor, scale: Tensor) -> Tensor:
    return (weight / scale).round().clamp(-1, 1)


def _sign(weight: Tensor, scale: Tensor) -> Tensor:
    return torch.where(weight - weight.mean() > 0, 1.0, -1.0).to(weight.dtype)


# The scale of a weight (M, K), and the integers given the scale.
QUANTIZERS: dict[
    WeightKind, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]
] = {
    "ternary": (weight_scale, _ternary),  # BitNet b1.58 (arXiv:2402.17764)
    "ternary_row": (_row_scales, _ternary),
    "sign": (weight_scale, _sign),  # BitNet b1 (arXiv:2310.11453)
}


def fake_quantize(x: Tensor, levels: int) -> Tensor:
    """Quantise and dequantise x (..., K) per row with integers in [-levels, levels]; gradient 1."""
    wide = widened(x)
    codes, scale = quantize_activations(wide.detach(), levels)
    return (wide + (codes * scale - wide.detach())).to(x.dtype)
