"""The engine with dense float32 weights against the golden whole-model vectors."""

from __future__ import annotations

import golden_cases
import numpy as np
import pytest
from golden_cases import Case
from packed_models import packed

from yocobit import Engine
from yocobit.model import Decoder

BOUND = 2e-5  # of absmax: float32 against float64, whole models


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    paths = golden_cases.cases(metafunc.config.getoption("golden"), golden_cases.MODEL)
    metafunc.parametrize("path", paths, ids=[path.stem for path in paths])


@pytest.fixture
def case(path) -> Case:
    return golden_cases.load(path)


@pytest.fixture
def engine(case, tmp_path) -> Engine:
    model = Decoder(golden_cases.model_config(case))
    model.load_state_dict(golden_cases.state_dict(case))
    return Engine(packed(model, tmp_path), threads=2, kernels=None)


def error(actual, expected) -> float:
    """Largest difference relative to the largest expected magnitude."""
    expected = np.asarray(expected, dtype=np.float64)
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def test_engine_logits_equal_golden(case, engine):
    for tokens, expected in zip(case["tokens"].numpy(), case["logits"], strict=True):
        assert error(engine.logits(tokens, "f32"), expected) < BOUND


def test_engine_caches_after_prefill_equal_golden(case, engine):
    n = case.info["prefill_len"]
    for row, tokens in enumerate(case["tokens"].numpy()):
        session = engine.session(len(tokens), "f32")
        session.feed(tokens[:n])

        keys, values = session.keys_values(len(engine.config.layers) - 1, 0, n)

        expected_keys = case["state_after_prefill.prev_key"][row].transpose(0, 1)  # (G, n, D)
        expected_values = case["state_after_prefill.prev_value"][row].transpose(0, 1)
        assert error(keys, expected_keys) < BOUND
        assert error(values, expected_values) < BOUND
        for layer in range(engine.config.n_self_layers):
            if (name := f"state_after_prefill.layer{layer}.S") in case:
                assert error(session.retention_state(layer), case[name][row]) < BOUND


def test_engine_steps_after_prefill_equal_golden(case, engine):
    n = case.info["prefill_len"]
    for tokens, expected in zip(case["tokens"].numpy(), case["logits"], strict=True):
        session = engine.session(len(tokens), "f32")
        session.feed(tokens[:n])

        logits = [session.step(token) for token in tokens[n:]]

        assert error(np.stack(logits), expected[n:]) < BOUND
