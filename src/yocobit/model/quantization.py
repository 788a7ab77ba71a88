"""Quantisers of weights and activations, for training and packing.

The engine and the native training kernels round the same way.

Letters: M output features   K input features
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from yocobit import _native
from yocobit.config import ConfigError, WeightKind
from yocobit.model.precision import in_float32, widened
from yocobit.packing.formats import formats_of
from yocobit.packing.scales import PerGroup, PerRow

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
    """Return integer weights (M, K) in {-1, 0, +1} and their scales.

    The scales are a scalar, (M, 1), or (M, groups) in values of float16, where the last group of a
    row may have fewer columns.
    """
    if kind not in QUANTIZERS:
        raise ValueError(f"weight kind must be {' or '.join(QUANTIZERS)} but is {kind!r}")
    integers_of = QUANTIZERS[kind]
    scales = _scales(weight, kind)
    return integers_of(weight, expand_scales(scales, weight.shape[1], kind)), scales


def expand_scales(scales: Tensor, K: int, kind: WeightKind) -> Tensor:
    """Return scales of quantize_weight in a shape that broadcasts to (M, K)."""
    granularity = formats_of(kind)[0].scale
    if not isinstance(granularity, PerGroup):
        return scales
    return scales.repeat_interleave(granularity.columns, dim=1)[:, :K]


def straight_through_weight(weight: Tensor, kind: WeightKind) -> Tensor:
    """Return the quantised weight (M, K), in the dtype of `weight`; gradient 1."""
    quantised: Tensor = _straight_through(weight, kind)
    return quantised.to(weight.dtype)


class _QuantizedWeight(torch.autograd.Function):
    """integers * scales, of quantize_weight; gradient 1."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, kind: WeightKind) -> Tensor:
        integers, scales = quantize_weight(weight, kind)
        return integers * expand_scales(scales, weight.shape[1], kind)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


_straight_through = in_float32(_QuantizedWeight.apply)


def check_trainable(kind: WeightKind) -> None:
    """Raise ConfigError for weights that only the engine supports."""
    if kind not in TRAINABLE:
        raise ConfigError(
            f"weights must be {', '.join(TRAINABLE[:-1])} or {TRAINABLE[-1]} in training and in "
            f"PyTorch but are {kind!r}; choose one of these: the engine alone runs {kind!r}"
        )


def weight_scale(weight: Tensor) -> Tensor:
    """Return mean|W| of a weight (M, K), a scalar tensor: the scale of a matrix."""
    return weight.abs().mean().clamp_min(SMALLEST_SCALE)


def _scales(weight: Tensor, kind: WeightKind) -> Tensor:
    """Return mean_magnitudes as they are stored: those of groups are rounded to float16."""
    means = mean_magnitudes(weight, kind)
    if not isinstance(formats_of(kind)[0].scale, PerGroup):
        return means
    return means.clamp_max(torch.finfo(torch.float16).max).half().to(weight.dtype)


def mean_magnitudes(weight: Tensor, kind: WeightKind) -> Tensor:
    """Return mean|W| of the matrix, of each row, or of each group of columns in a row."""
    granularity = formats_of(kind)[0].scale
    if isinstance(granularity, PerGroup):
        return _group_means(weight.abs(), granularity.columns)
    if isinstance(granularity, PerRow):
        return weight.abs().mean(dim=1, keepdim=True).clamp_min(SMALLEST_SCALE)
    return weight_scale(weight)


def _group_means(values: Tensor, columns: int) -> Tensor:
    """Return the means of groups of columns, (M, groups)."""
    K = values.shape[1]
    n_padded = -K % columns
    groups = F.pad(values, (0, n_padded)).unflatten(1, (-1, columns))
    sizes = groups.new_full(groups.shape[1:2], columns)
    sizes[-1] -= n_padded
    return groups.sum(dim=-1) / sizes


def _ternary(weight: Tensor, scale: Tensor) -> Tensor:
    # The scale of a group of zeros is 0.
    return (weight / scale.where(scale > 0, 1)).round().clamp(-1, 1)


def _centred_sign(weight: Tensor, scale: Tensor) -> Tensor:
    return _sign(weight - weight.mean(), scale)


def _sign(weight: Tensor, scale: Tensor) -> Tensor:
    return torch.where(weight > 0, 1.0, -1.0).to(weight.dtype)


# The integers of a weight (M, K), given its scales in a shape that broadcasts to it.
QUANTIZERS: dict[WeightKind, Callable[[Tensor, Tensor], Tensor]] = {
    "ternary": _ternary,  # BitNet b1.58 (arXiv:2402.17764)
    "ternary_row": _ternary,
    "sign": _centred_sign,  # BitNet b1 (arXiv:2310.11453)
    "ternary_g64": _ternary,
    "ternary_g128": _ternary,
    # Not centred, as in XNOR-Net (arXiv:1603.05279) and ParetoQ (arXiv:2502.02631).
    "sign_g128": _sign,
    "ternary_row_a16": _ternary,
}
TRAINABLE: tuple[WeightKind, ...] = (*QUANTIZERS, "dense")


def fake_quantize(x: Tensor, levels: int) -> Tensor:
    """Quantise and dequantise x (..., K) per row with integers in [-levels, levels]; gradient 1."""
    wide = widened(x)
    codes, scale = quantize_activations(wide.detach(), levels)
    return (wide + (codes * scale - wide.detach())).to(x.dtype)


def straight_through_activations(x: Tensor) -> Tensor:
    """Round x (..., K) to int8 per row and return the rounded values; gradient 1."""
    rounded: Tensor = _rounded(x)
    return rounded


class _RoundedActivations(torch.autograd.Function):
    """integers * scale, of quantize_activations; gradient 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        integers, scale = quantize_activations(x)
        return integers * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


_rounded = in_float32(_RoundedActivations.apply)
