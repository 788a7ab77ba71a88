"""Rotary position embedding (arXiv:2104.09864) in its two published layouts.

The frequencies follow from `theta`, or are explicit, as in scaled and partial variants.

Letters: B batch   H heads   T positions   D head size
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from yocobit.config import ModelConfig, RopeKind
from yocobit.mixers import MixerSpec
from yocobit.model.precision import widened

Positions = int | Tensor  # that of the first of T consecutive tokens, or one per token, (B, T)


class Rope(NamedTuple):
    """The rotation of a layer's queries and keys."""

    kind: RopeKind
    theta: float
    frequencies: tuple[float, ...] = ()  # n <= D/2, for "half" only; (): D/2 frequencies of theta
    factor: float = 1.0  # multiplies cosines and sines

    @classmethod
    def of(cls, config: ModelConfig, spec: MixerSpec) -> Rope:
        """Return the rotation of a mixer."""
        given: dict[str, tuple[float, ...]] = {
            "full": config.full_rope_frequencies,
            "window": config.window_rope_frequencies,
        }
        frequencies = given.get(spec.name, ())
        return cls(spec.rope(config), config.rope_theta, frequencies, config.rope_factor)


NO_ROPE = Rope("none", 1.0)


def rope(
    x: Tensor,
    start: Positions,
    kind: RopeKind,
    theta: float,
    frequencies: tuple[float, ...] = (),
    factor: float = 1.0,
) -> Tensor:
    """Rotate x (B, H, T, D) by the absolute positions `start`; the other arguments are a Rope.

    "interleaved" rotates the pairs (2i, 2i + 1), "half" the pairs (i, i + n) for n frequencies, and
    "none" returns x. With n < D/2 the values after the first 2 n are not rotated. Half precision is
    rotated in float32.
    """
    if kind == "none":
        return x
    n_rotated = 2 * len(frequencies) or x.shape[3]
    if n_rotated == x.shape[3]:
        return _rope(widened(x), start, kind, theta, frequencies, factor).to(x.dtype)
    rotated, rest = x.tensor_split((n_rotated,), dim=-1)
    return torch.cat((rope(rotated, start, kind, theta, frequencies, factor), rest), dim=-1)


def _rope(x: Tensor, start: Positions, kind: RopeKind, *table: Any) -> Tensor:
    if isinstance(start, Tensor):
        cos, sin = (y[:, None].to(x.dtype) for y in _cos_sin(start, x.shape[3], kind, *table))
    else:
        cos, sin = _range_cos_sin(start, x.shape[2], x.dtype, x.device, x.shape[3], kind, *table)
    if kind == "interleaved":
        y: Tensor = _Rotate.apply(x, torch.complex(cos, sin))  # type: ignore[no-untyped-call]
        return y
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class _Rotate(torch.autograd.Function):
    """x (..., T, D), its neighbouring pairs as complex numbers, times rotations (T, D/2).

    The backward pass rotates by the conjugate; autograd's own would copy x to conjugate it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rotations: Tensor) -> Tensor:
        ctx.save_for_backward(rotations)
        return _rotate(x, rotations)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rotations,) = ctx.saved_tensors
        return _rotate(grad, rotations.conj().resolve_conj()), None


def _rotate(x: Tensor, rotations: Tensor) -> Tensor:
    if x.stride(-1) != 1:  # a gradient, or the output of a hook
        x = x.contiguous()
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))  # (..., T, D/2)
    return torch.view_as_real(pairs * rotations).flatten(-2)


def frequencies(head_dim: int, kind: RopeKind, theta: float) -> Tensor:
    """Return the angle per position of each pair, (D/2,) float64.

    The interleaved table runs from 1 to 1/theta inclusive, the half-split one ends a step earlier.
    """
    pairs = torch.arange(head_dim // 2, dtype=torch.float64, device="cpu")
    last = head_dim // 2 - 1 if kind == "interleaved" else head_dim // 2
    return theta ** -(pairs / last)


def _range_cos_sin(*key: Any) -> tuple[Tensor, Tensor]:
    """Return cos and sin, each (T, D/2), as _new_range_cos_sin does, from a cache.

    Not in a trace, whose tensors hold no values: torch.compile, torch.export, FakeTensorMode.
    """
    if torch.compiler.is_compiling() or type(torch.empty(0, device="cpu")) is not Tensor:
        return _new_range_cos_sin(*key)
    return _cached_range_cos_sin(*key)


def _new_range_cos_sin(
    start: int, length: int, dtype: torch.dtype, device: torch.device, *table: Any
) -> tuple[Tensor, Tensor]:
    positions = torch.arange(start, start + length, device="cpu")
    cos, sin = _cos_sin(positions, *table)
    return cos.to(device, dtype), sin.to(device, dtype)


@lru_cache(maxsize=8)
def _cached_range_cos_sin(*key: Any) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False), torch.no_grad():
        return _new_range_cos_sin(*key)


def _cos_sin(
    positions: Tensor,
    head_dim: int,
    kind: RopeKind,
    theta: float,
    given: tuple[float, ...],
    factor: float,
) -> tuple[Tensor, Tensor]:
    """Return cos and sin, each (..., D/2) float64: float32 angles are wrong beyond 1e5."""
    if given:
        table = torch.tensor(given, dtype=torch.float64, device="cpu")
    else:
        table = frequencies(head_dim, kind, theta)
    angles = positions[..., None].double() * table.to(positions.device)
    return angles.cos() * factor, angles.sin() * factor
