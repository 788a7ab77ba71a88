"""The engine equals the PyTorch model with weights-only quantisation (A16).

Letters: M output features   K input features
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from float64_decoder import round_groups
from packed_models import as_packed, nano, packed, trained, weights_on
from safetensors.numpy import load_file

from yocobit import Engine
from yocobit.model import Decoder
from yocobit.model.bitlinear import BitLinear
from yocobit.model.quantization import TRAINABLE, quantize_weight
from yocobit.packing.file_format import scale_name
from yocobit.packing.formats import formats_of

KINDS = [kind for kind in TRAINABLE if formats_of(kind)[0].activations.group_columns]
GROUP = 32  # columns of activations with one scale
STACKS = ("yoco-gret", "yoco-swa", "transformer")


def logits_of(model: Decoder, tokens: np.ndarray) -> np.ndarray:
    """Return the logits of 8 texts."""
    with torch.no_grad():
        return model(torch.from_numpy(tokens.reshape(8, -1))).numpy()


def engine_logits(model: Decoder, tmp_path, tokens: np.ndarray, exact: bool) -> np.ndarray:
    engine = Engine.load(packed(model, tmp_path).path, threads=1, exact=exact)
    return np.stack([engine.logits(text, "f32") for text in tokens.reshape(8, -1)])


def rounding_inputs(twin: Decoder) -> Decoder:
    """Round the input of every projection to int8 in groups, as the engine does."""

    def rounded(linear: BitLinear, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        x = inputs[0]
        padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % GROUP)).unflatten(-1, (-1, GROUP))
        rounded, _ = round_groups(padded.double().numpy())
        return (torch.from_numpy(rounded).to(x).flatten(-2)[..., : x.shape[-1]],)

    for module in twin.modules():
        if isinstance(module, BitLinear):
            module.register_forward_pre_hook(rounded)
    return twin


@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_pytorch_with_activations_rounded_in_groups(kind, tmp_path, tokens):
    model = trained(nano("mixed", kind, d_ff=136), steps=3)
    twin = rounding_inputs(as_packed(model).double())

    logits = engine_logits(model, tmp_path, tokens, exact=False)

    expected = logits_of(twin, tokens)
    error = np.abs(logits - expected).max(axis=(1, 2)) / np.abs(expected).max()
    # Sums in another order differ by 1e-7, and an activation this close to a tie by a whole step:
    # PyTorch in float32 and in float64 differ by 4e-3 in some texts, by 1e-5 in the others.
    assert error.min() < 1e-4
    assert error.max() < 1e-2


@pytest.mark.parametrize(
    ("stack", "kind"),
    [
        pytest.param(*pair, marks=[pytest.mark.slow] * (pair[1] == "ternary_g64"))
        for pair in product(STACKS, KINDS)
    ],
)
def test_exact_logits_are_those_of_training_to_the_rounding_of_activations(
    stack, kind, tmp_path, tokens
):
    model = trained(nano(stack, kind), steps=3)

    logits = engine_logits(model, tmp_path, tokens, exact=True)

    expected = logits_of(as_packed(model), tokens)
    # A value moves by a step / sqrt(12) on average. A step is absmax / 16383 of its group, at most
    # sqrt(32) times the mean magnitude. The squares of the errors of four inputs in a layer, and of
    # that of K and V, add up.
    bound = (4 * len(model.layers) + 1) ** 0.5 * (GROUP / 12) ** 0.5 / 16383
    assert np.linalg.norm(logits - expected) < bound * np.linalg.norm(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_weights_have_the_integers_and_scales_of_training(kind, tmp_path):
    model = trained(nano("yoco-gret", kind, d_ff=136), steps=1)

    file = packed(model, tmp_path).file

    format, tensors = formats_of(kind)[0], load_file(file)
    projections = {n: m for n, m in model.named_modules() if isinstance(m, BitLinear)}
    for name, linear in projections.items():
        (M, K), codes = linear.weight.shape, tensors[f"{name}.weight"]
        scales = tensors[scale_name(f"{name}.weight")]
        integers, _ = quantize_weight(linear.weight.detach(), kind)
        rounded = linear.rounded_weight().detach()
        np.testing.assert_array_equal(format.decode(codes, M, K), integers)
        np.testing.assert_array_equal(format.dequantize(codes, scales, M, K), rounded)
    assert len(projections) == 28


@pytest.mark.parametrize(
    ("stack", "kind"),
    weights_on(
        "yoco-gret",
        {"ternary_row_a16", "ternary", "dense"},
        product(STACKS, ["ternary_g128", "ternary_row_a16", "ternary", "dense"]),
    ),
)
def test_logits_of_experts_are_those_of_training(stack, kind, tmp_path, tokens):
    experts = {"ffn": "moe", "n_experts": 6, "n_active_experts": 2, "d_ff": 48}
    model = trained(nano(stack, kind, **experts, swiglu_limit=2.0), steps=10)

    logits = engine_logits(model, tmp_path, tokens, exact=kind in KINDS)

    expected = logits_of(as_packed(model), tokens)
    error = np.abs(logits - expected).max(axis=(1, 2)) / np.abs(expected).max()
    # As in test_engine_pytorch.py; a router may also choose another expert at a tie.
    assert np.median(error) < (1e-5 if kind == "dense" else 3e-4)
    assert error.max() < 3e-2
