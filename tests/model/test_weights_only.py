"""Training of weights-only formats (A16): group scales against NumPy, straight-through gradients.

Letters: N tokens   M output features   K input features
"""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from yocobit.config import ConfigError, WeightKind, preset
from yocobit.model import Decoder
from yocobit.model.bitlinear import BitLinear, project
from yocobit.model.quantization import TRAINABLE, expand_scales, quantize_weight
from yocobit.packing.formats import formats_of

GROUPS = {"ternary_g64": 64, "ternary_g128": 128, "sign_g128": 128}
KINDS = (*GROUPS, "ternary_row_a16")
UNTRAINABLE = ("int2_g64", "int2_g128", "odd_g128")


def layer(kind: str, M: int, K: int, dtype: torch.dtype = torch.float32) -> BitLinear:
    found = BitLinear(K, M, kind).to(dtype)
    torch.nn.init.normal_(found.weight, std=0.3, generator=torch.Generator().manual_seed(M * K))
    return found


def expected(weight: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return integers and scales (M, K) of a float64 weight, group by group."""
    integers, scales = np.zeros_like(weight), np.zeros_like(weight)
    columns = GROUPS.get(kind, weight.shape[1])
    for row, first in np.ndindex(weight.shape[0], -(-weight.shape[1] // columns)):
        group = weight[row, first * columns : (first + 1) * columns]
        scale = np.abs(group).mean()
        if kind in GROUPS:
            scale = np.float64(np.float16(scale))
        part = (row, slice(first * columns, (first + 1) * columns))
        scales[part] = scale
        if kind == "sign_g128":
            integers[part] = np.where(group > 0, 1, -1)
        elif scale > 0:
            integers[part] = np.clip(np.rint(group / scale), -1, 1)
    return integers, scales


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("K", [8, 64, 136, 384])  # 136: the last group is partial
def test_integers_and_scales_equal_their_definition_by_group(kind, K):
    weight = layer(kind, 6, K, torch.float64).weight.detach()
    weight[2, : min(K, 128)] = 0
    integers, scales = expected(weight.numpy(), kind)

    found, found_scales = quantize_weight(weight, kind)

    np.testing.assert_array_equal(found, integers)
    expanded = expand_scales(found_scales, K, kind).expand(6, K).numpy()
    # Group scales are float16 values and equal; the scale of a zero row is bounded from below.
    np.testing.assert_allclose(expanded, scales, rtol=0 if kind in GROUPS else 1e-14, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_multiplies_unrounded_inputs_by_the_quantised_weights(kind):
    linear, x = layer(kind, 5, 136, torch.float64), torch.randn(7, 136, dtype=torch.float64)
    integers, scales = expected(linear.weight.detach().numpy(), kind)

    y = linear(x).detach()

    # float64 sums of 136 terms: 136 eps of the largest sum of magnitudes.
    largest = (np.abs(x.numpy()) @ np.abs(integers * scales).T).max()
    np.testing.assert_allclose(y, x.numpy() @ (integers * scales).T, rtol=0, atol=3.1e-14 * largest)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_straight_through(kind):
    linear = layer(kind, 5, 136, torch.float64)
    x = torch.randn(7, 136, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(7, 5, dtype=torch.float64)
    integers, scales = expected(linear.weight.detach().numpy(), kind)

    linear(x).backward(upstream)

    torch.testing.assert_close(x.grad, upstream @ torch.from_numpy(integers * scales))
    torch.testing.assert_close(linear.weight.grad, upstream.T @ x.detach())


def test_scales_are_stored_values_of_any_magnitude():
    weight = torch.tensor([[1e-9] * 128, [1e6] * 128, [0.1] * 128])

    integers, scales = quantize_weight(weight, "ternary_g128")

    assert scales.flatten().tolist() == [0, 65504, np.float16(0.1)]
    assert integers.isfinite().all()
    assert integers.unique(dim=1).flatten().tolist() == [0, 1, 1]


def test_signs_are_not_centred_and_zero_is_negative():
    weight = torch.tensor([[1.0, 2.0, 0.0, 3.0]])

    integers, scales = quantize_weight(weight, "sign_g128")

    assert integers.tolist() == [[1, 1, -1, 1]]
    assert scales.tolist() == [[1.5]]


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_layers_equal_eager_ones(kind):
    linears = [layer(kind, M, 136) for M in (5, 8)]
    x = torch.randn(3, 136, requires_grad=True)
    compiled = torch.compile(project, backend="aot_eager", fullgraph=True)

    actual = torch.autograd.grad([y.sum() for y in compiled(x, *linears)], x)
    eager = torch.autograd.grad([y.sum() for y in project(x, *linears)], x)

    assert torch.equal(actual[0], eager[0])


def test_bfloat16_matmuls_round_the_quantised_weights():
    linear, x = layer("ternary_g128", 5, 136), torch.randn(3, 136)
    torch.set_float32_matmul_precision("medium")
    try:
        y = linear(x)
    finally:
        torch.set_float32_matmul_precision("highest")

    rounded = linear.rounded_weight().bfloat16()
    assert torch.equal(y, (x.bfloat16() @ rounded.T).float())


def test_every_kind_is_trainable_or_of_published_models_only():
    assert set(TRAINABLE) | set(UNTRAINABLE) == set(get_args(WeightKind))
    for kind in KINDS:
        assert formats_of(kind)[0].activations.group_columns is not None


@pytest.mark.parametrize("kind", UNTRAINABLE)
def test_a_model_of_untrainable_weights_is_rejected_in_one_line(kind):
    with pytest.raises(ConfigError, match=f"^weights must be .* or dense .* but are '{kind}'"):
        Decoder(preset("nano").replace(weights=kind))
