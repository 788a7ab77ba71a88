"""Norms and gated norms: native kernels and plain PyTorch against float64, and each other.

Letters: B batch   T positions   K features   H heads   D head size
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from yocobit import _native
from yocobit.model.norm import RMSNorm, gated_norm
from yocobit.model.ops import dispatch

B, T, EPS = 2, 19, 1e-5
# (K, H): the smallest, off the unroll of compilers, and the heads of models; H = 0: no heads.
SHAPES = [(8, 0), (384, 0), (1000, 0), (8, 1), (24, 3), (384, 6)]
# About ten roundings of 2^-24, and sums whose errors mostly cancel.
BOUND = 1e-6


@pytest.fixture(params=[dispatch.PYTORCH, *_native.supported_kernels()])
def kernels(request):
    """Plain PyTorch, and the native kernels of each kind that this CPU has."""
    with dispatch.use_kernels(request.param):
        yield request.param


@pytest.mark.parametrize("K", [8, 384, 1000, 1001])
def test_norm_and_its_gradients_equal_the_formula_in_float64(kernels, K):
    norm, inputs = RMSNorm(K, eps=EPS), [_random(B, T, K)]

    actual = _value_and_gradients(lambda x: norm(x), inputs, norm)

    expected = _value_and_gradients(
        lambda x: F.rms_norm(x, (K,), norm.weight, EPS), _doubled(inputs), norm.double()
    )
    _assert_near(actual, expected)


@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("K, H", SHAPES)
def test_gated_norm_and_its_gradients_equal_the_formula_in_float64(kernels, K, H, has_norm):
    norm, inputs = _norm(K, has_norm), _gated_inputs(K, H)

    actual = _value_and_gradients(lambda *xs: gated_norm(*xs, norm, EPS), inputs, norm)

    expected = _value_and_gradients(
        lambda *xs: _gated_norm(*xs, norm), _doubled(inputs), norm.double()
    )
    _assert_near(actual, expected)


@pytest.mark.parametrize("K, H", SHAPES)
def test_native_kernels_have_the_bits_of_the_scalar_ones(K, H):
    norm, inputs = _norm(K, True), _gated_inputs(K, H)
    results = []

    for name in _native.supported_kernels():
        with dispatch.use_kernels(name):
            results.append(
                _value_and_gradients(lambda *xs: gated_norm(*xs, norm, EPS), inputs, norm)
                + _value_and_gradients(lambda x, _: norm(x), [inputs[0], inputs[0]], norm)
            )

    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_gradients_have_the_same_bits_in_each_of_many_runs():
    norm, inputs = _norm(384, True), _gated_inputs(384, 6)

    runs = [
        _value_and_gradients(lambda *xs: gated_norm(*xs, norm, EPS), inputs, norm)
        for _ in range(20)
    ]

    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("gate", [-1e4, -90.0, 0.0, 90.0, 1e4])
def test_gated_norm_and_its_gradients_are_finite_at_extreme_gates(kernels, gate):
    norm, (_, up) = _norm(16, True), _gated_inputs(16, 2)

    results = _value_and_gradients(
        lambda *xs: gated_norm(*xs, norm, EPS), [torch.full((B, T, 16), gate), up], norm
    )

    assert all(result.isfinite().all() for result in results)


@pytest.mark.parametrize("part", ["x", "weight", "r", "y"])
def test_native_norm_rejects_arrays_of_wrong_shape(part):
    arrays = {"x": (3, 16), "weight": (16,), "eps": None, "y": (3, 16), "r": (3,)}
    arrays[part] = (2, 8) if len(arrays[part]) == 2 else (4,)
    values = [EPS if shape is None else np.ones(shape, np.float32) for shape in arrays.values()]

    with pytest.raises(ValueError, match="must be"):
        _native.training_norm("scalar", 1, *values)


@pytest.mark.parametrize("part", ["gate", "up", "weight", "y", "r", "head_r"])
def test_native_gate_rejects_arrays_of_wrong_shape(part):
    arrays = {"gate": (3, 16), "up": (2, 3, 8), "weight": (16,), "eps": None}
    arrays |= {"y": (3, 16), "r": (3,), "head_r": (3, 2)}
    arrays[part] = {1: (4,), 2: (2, 8), 3: (2, 3, 4)}[len(arrays[part])]
    values = [EPS if shape is None else np.ones(shape, np.float32) for shape in arrays.values()]

    with pytest.raises(ValueError, match="must be"):
        _native.training_gate("scalar", 1, *values)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _norm(K: int, has_norm: bool) -> torch.nn.Module:
    norm = RMSNorm(K, eps=EPS) if has_norm else torch.nn.Identity()
    for parameter in norm.parameters():
        parameter.data += _random(K)
    return norm


def _gated_inputs(K: int, H: int) -> list[Tensor]:
    """Return gate (B, T, K) and up (B, T, K), or with heads (B, H, T, D)."""
    return [_random(B, T, K), _random(*((B, H, T, K // H) if H else (B, T, K)), seed=1)]


def _gated_norm(gate: Tensor, up: Tensor, norm: torch.nn.Module) -> Tensor:
    if up.ndim > gate.ndim:
        up = F.rms_norm(up, up.shape[-1:], eps=EPS).transpose(1, 2).flatten(2)
    y = F.silu(gate) * up
    return F.rms_norm(y, y.shape[-1:], norm.weight, EPS) if isinstance(norm, RMSNorm) else y


def _doubled(inputs: list[Tensor]) -> list[Tensor]:
    return [x.double() for x in inputs]


def _value_and_gradients(function, inputs: list[Tensor], norm) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = function(*leaves)
    weights = _random(*y.shape, seed=2).to(y.dtype)
    wanted = [*leaves, *norm.parameters()]
    found = torch.autograd.grad((y * weights).sum(), wanted, allow_unused=True)
    return [y.detach(), *(grad for grad in found if grad is not None)]


def _assert_near(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert (a - e).abs().max() <= BOUND * e.abs().max()
