"""Hidden states after the final norm: their values, a function of the tokens alone."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from yocobit import Engine

TEXT = "And God said, Let there be light: and there was light. " * 12


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(threads=1)


@pytest.fixture(scope="module")
def tokens(engine) -> list[int]:
    return engine.encode(TEXT)[:150]  # more than a batch


@pytest.fixture(scope="module")
def expected(engine, tokens) -> np.ndarray:
    return engine.session(len(tokens), "f32").hidden_states(tokens)


def test_hidden_states_times_the_head_are_the_logits(engine, tokens, expected):
    """Within the quantisation of activations: half a step of each value, times its weight."""
    tensors = load_file(engine.model.file)
    head = tensors["head.weight"] * tensors["head.weight_scale"][:, None]  # (V, C)
    logits = engine.session(len(tokens), "f32").feed_all(tokens)

    step = np.abs(expected).max(axis=1, keepdims=True) / 127
    bound = (0.5 + 1e-4) * step * np.abs(head).sum(axis=1)
    assert (np.abs(expected @ head.T - logits) <= bound).all()


@pytest.mark.parametrize("size", [1, 7, 32, 128])
def test_hidden_states_have_the_same_bits_for_any_chunking(engine, tokens, expected, size):
    session = engine.session(len(tokens), "f32")

    chunks = [
        session.hidden_states(tokens[start : start + size]) for start in range(0, len(tokens), size)
    ]

    assert np.array_equal(np.concatenate(chunks), expected)


@pytest.mark.parametrize(("threads", "kernels"), [(2, None), (1, "scalar")])
def test_hidden_states_have_the_same_bits_for_any_threads_and_kernels(
    tokens, expected, threads, kernels
):
    engine = Engine.load(threads=threads, kernels=kernels)

    assert np.array_equal(engine.session(len(tokens), "f32").hidden_states(tokens), expected)


def test_logits_continue_after_hidden_states(engine, tokens):
    one, other = engine.session(len(tokens), "f32"), engine.session(len(tokens), "f32")
    one.hidden_states(tokens[:-1])
    other.feed(tokens[:-1])

    with pytest.raises(ValueError, match="has no logits"):
        _ = one.logits
    assert np.array_equal(one.feed(tokens[-1:]), other.feed(tokens[-1:]))


def test_hidden_states_reject_no_tokens_and_more_than_fit(engine, tokens):
    session = engine.session(4, "f32")

    with pytest.raises(ValueError, match="at least one token"):
        session.hidden_states([])
    with pytest.raises(ValueError, match="has room for 4"):
        session.hidden_states(tokens[:5])
    assert session.position == 0
