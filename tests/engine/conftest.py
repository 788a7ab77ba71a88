"""Trained nano models and their packed forms, shared by the tests of the engine.

Fixtures import yocobit: this file is read before the option --native is.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest


@pytest.fixture(scope="session")
def model_of(tmp_path_factory):
    """A function from stack, weights and changes to (PyTorch twin, packed directory)."""
    from packed_models import as_packed, nano, packed, trained

    @functools.cache
    def make(stack: str, weights: str, steps: int = 3, **changes):
        model = trained(nano(stack, weights, **changes), steps)
        directory = tmp_path_factory.mktemp(f"{stack}-{weights}")
        return as_packed(model), packed(model, directory).path

    return make


@pytest.fixture
def tokens() -> np.ndarray:
    from packed_models import T, tokens

    return tokens()[1000 : 1000 + T].numpy()


@pytest.fixture
def engine(model_of):
    from yocobit import Engine

    return Engine.load(model_of("yoco-gret", "ternary")[1])
