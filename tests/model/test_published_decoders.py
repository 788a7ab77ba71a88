"""The Decoder equals transformers' own classes: logits and gradients of every feature.

Letters: B batch   T positions   V vocabulary
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from published_decoders import CASES, V, pair, translated
from torch import Tensor

from yocobit.config import ModelConfig
from yocobit.model import Cache, Decoder

B, T = 2, 24
# Relative to the largest value. transformers computes norms, rope and their gradients in float32:
# a value passes about 15 roundings of 2^-24, of which each may be amplified about twofold.
BOUND = 2e-6
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(ModelConfig)}


@pytest.fixture(scope="module", params=CASES)
def models(request):
    """The name of a case, its model of transformers, and the Decoder with the same weights."""
    return (request.param, *pair(request.param))


@pytest.fixture(autouse=True)
def eager():
    with torch.compiler.set_stance("force_eager"):  # of transformers' BitLinear
        yield


def tokens() -> Tensor:
    # A seed for which float32 rounds every activation of the ternary model as float64 does.
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(2))


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def test_cases_have_every_feature_of_the_configuration():
    found = {name for case in CASES.values() for name in case.features}

    names = list(_DEFAULTS)
    # Experts are compared in test_experts.py; exact_activations is a setting of the engine, and
    # trained_context changes no result.
    others = {"n_experts", "n_active_experts", "swiglu_limit", "exact_activations", "pooling"}
    others |= {"trained_context"}
    assert found == {*names[names.index("head_size") :]} - others


@torch.no_grad()
def test_logits_equal_those_of_transformers(models):
    _, theirs, ours = models

    assert error(ours(tokens()), theirs(tokens()).logits) < BOUND


def test_gradients_equal_those_of_transformers(models):
    name, theirs, ours = models
    targets = tokens().roll(-1, dims=1).flatten()
    for model in (theirs, ours):
        model.zero_grad()

    F.cross_entropy(theirs(tokens()).logits.flatten(0, 1), targets).backward()
    F.cross_entropy(ours(tokens()).flatten(0, 1), targets).backward()

    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    expected = translated(expected, CASES[name])
    for name, parameter in ours.named_parameters():
        assert error(parameter.grad, expected[name]) < BOUND, name


@pytest.mark.parametrize(
    ("name", "feature"),
    [
        (name, feature)
        for name in CASES
        for feature in CASES[name].features
        if feature != "head_size"  # without it, shapes differ
    ],
)
@torch.no_grad()
def test_a_model_without_a_feature_has_other_logits(name, feature):
    _, ours = pair(name)
    without = Decoder(ours.config.replace(**{feature: _DEFAULTS[feature]})).double()
    without.load_state_dict(ours.state_dict(), strict=False)

    changed = error(without(tokens()), ours(tokens()))

    # The smallest is that of projection_norm_eps.
    assert changed > 2 * BOUND


@torch.no_grad()
def test_steps_of_any_length_equal_forward(models):
    *_, ours = models
    cache = Cache()

    ours.prefill(tokens()[:, :7], cache)
    stepped = [ours.step(piece, cache) for piece in tokens()[:, 7:].split((1, 10, 1, 5), dim=1)]

    torch.testing.assert_close(torch.cat(stepped, dim=1), ours(tokens())[:, 7:])


@torch.no_grad()
def test_documents_equal_those_alone(models):
    *_, ours = models
    resets = torch.zeros(B, T, dtype=torch.bool)
    resets[:, 9] = True

    found = ours.logits(ours.hidden(tokens(), resets))

    parts = [ours(part) for part in tokens().split((9, T - 9), dim=1)]
    torch.testing.assert_close(found, torch.cat(parts, dim=1))


@torch.no_grad()
def test_padded_texts_equal_those_alone(models):
    *_, ours = models
    real = torch.ones(B, T, dtype=torch.bool)
    real[1, :8] = False

    found = ours.logits(ours.extend(tokens(), Cache(), real))

    torch.testing.assert_close(found[1, 8:], ours(tokens()[1:, 8:])[0])
