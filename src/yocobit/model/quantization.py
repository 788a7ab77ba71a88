"""Quantisers of weights and activations, for training and packing.

The engine and the native training kernels round the same way.

Letters: M output features   K input features
"""

from __future__ import annotations

import torch
from torch import Tensor

from yocobit import _native
from yocobit.config import WeightKind

# Lower bound of an absmax: an all-zero row or matrix does not divide by zero.
SMALLEST_SCALE = _native.SMALLEST_ABSMAX


def quantize_activations(x: Tensor, levels: int = 127) -> tuple[Tensor, Tensor]:
    """Round x (..., K) to integers in [-levels, levels] per row (absmax, half to even).

    Returns the integers in x's dtype and the scale (..., 1); integers * scale approximates x.
    """
    largest = x.abs().amax(dim=-1, keepdim=True).clamp_min(SMALLEST_SCALE)
    # Not levels / largest, which PyTorch takes for levels times a rounded reciprocal.
    return (x * (torch.full_like(largest, levels) / largest)).round(), largest / levels


def quantize_weight(weight: Tensor, kind: WeightKind) -> tuple[Tensor, Tensor]:
    """Return integer weights (M, K) in {-1, 0, +1} and their scale, a scalar or (M, 1) tensor.

    "ternary" is BitNet b1.58 (arXiv:2402.17764), "ternary_row" the same with a scale per row,
    "sign" is BitNet b1 (arXiv:2310.11453).
    """
    if kind == "ternary_row":
        scale = weight.abs().mean(dim=1, keepdim=True).clamp_min(SMALLEST_SCALE)
    else:
        scale = weight_scale(weight)
    if kind in ("ternary", "ternary_row"):
        return (weight / scale).round().clamp(-1, 1), scale
    if kind == "sign":
        return torch.where(weight - weight.mean() > 0, 1.0, -1.0).to(weight.dtype), scale
    raise ValueError(f"weight kind must be quantised but is {kind!r}")


def weight_scale(weight: Tensor) -> Tensor:
    """Return mean|W| of a weight (M, K), a scalar tensor: the scale of a matrix."""
    return weight.abs().mean().clamp_min(SMALLEST_SCALE)


def fake_quantize(x: Tensor, levels: int) -> Tensor:
    """Quantise and dequantise x (..., K) per row with integers in [-levels, levels]; gradient 1."""
    codes, scale = quantize_activations(x.detach(), levels)
    return x + (codes * scale - x.detach())
