"""Trained nano models and their packed forms, shared by the tests of the engine."""

from __future__ import annotations

import functools

import numpy as np
import packed_models
import pytest
from packed_models import T, as_packed, nano, packed, trained

from yocobit import Engine


@pytest.fixture(scope="session")
def model_of(tmp_path_factory):
    """A function from stack, weights and changes to (PyTorch twin, packed directory)."""

    @functools.cache
    def make(stack: str, weights: str, steps: int = 3, **changes):
        model = trained(nano(stack, weights, **changes), steps)
        directory = tmp_path_factory.mktemp(f"{stack}-{weights}")
        return as_packed(model), packed(model, directory).path

    return make


@pytest.fixture
def tokens() -> np.ndarray:
    return packed_models.tokens()[1000 : 1000 + T].numpy()


@pytest.fixture
def engine(model_of) -> Engine:
    return Engine.load(model_of("yoco-gret", "ternary")[1])
