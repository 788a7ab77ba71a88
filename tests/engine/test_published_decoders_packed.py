"""The engine equals transformers' own classes on packed checkpoints of their weights.

Letters: T positions   V vocabulary
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from packed_models import as_packed, packed, tokens
from published_decoders import CASES, pair

from yocobit import Engine

T = 40


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].config.weights == "dense"])
@torch.no_grad()
def test_logits_of_dense_models_equal_those_of_transformers(name, tmp_path):
    theirs, ours = pair(name)
    text = tokens()[:T]

    logits = Engine(packed(ours.float(), tmp_path), threads=1, kernels=None).logits(
        text.numpy(), "f32"
    )

    expected = theirs(text[None]).logits[0].numpy()
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


@torch.no_grad()
def test_logits_with_projection_norms_equal_those_of_the_decoder(tmp_path):
    _, ours = pair("bitnet")
    text = tokens()[:T]

    engine = Engine(packed(ours.float(), tmp_path), threads=1, kernels=None)

    expected = as_packed(ours).double()(text[None])[0].numpy()
    error = (
        np.abs(engine.logits(text.numpy(), "f32") - expected).max(axis=1) / np.abs(expected).max()
    )
    # Texts with an activation next to a rounding tie differ by about 1e-3.
    assert np.median(error) < 1e-4
    assert error.max() < 1e-2
