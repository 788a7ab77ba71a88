"""Logits depend on model and tokens only, to the last bit.

Letters: T positions   V vocabulary
"""

from __future__ import annotations

import numpy as np
import packed_models
import pytest
import torch
from kernel_families import KERNELS, SLOW
from packed_models import KINDS, STACKS, T, nano, packed, trained, weights_on

from yocobit import Engine
from yocobit.engine import Session


def bits(array) -> np.ndarray:
    """Floats as integers, so that equality means the same bits."""
    return np.ascontiguousarray(array).view(np.uint32)


def test_int4_head_logits_have_the_same_bits_for_any_kernels_threads_and_chunks(tmp_path, tokens):
    path = packed(trained(nano("mixed", "ternary"), steps=3), tmp_path, head="int4").path
    expected = bits(Engine.load(path, threads=1, kernels="scalar").logits(tokens, "f32"))

    for kernels in KERNELS:
        engine = Engine.load(path, threads=2, kernels=kernels)
        np.testing.assert_array_equal(bits(engine.logits(tokens, "f32")), expected)
        session = engine.session(T, "f32")
        for t in range(T):
            np.testing.assert_array_equal(bits(session.step(tokens[t])), expected[t])


WEIGHTS_AND_CACHES = (
    *((kind, "f32") for kind in KINDS),
    *(("ternary", type) for type in ("f16", "int8", "int4")),
)


@pytest.mark.parametrize(
    ("stack", "weights", "cache"),
    weights_on(
        "mixed",
        set(KINDS) - {"ternary"},
        ((stack, *each) for stack in STACKS for each in WEIGHTS_AND_CACHES),
    ),
)
def test_logits_have_the_same_bits_for_any_kernels_threads_and_chunks(
    model_of, stack, weights, cache, tokens
):
    path = model_of(stack, weights)[1]
    expected = bits(Engine.load(path, threads=1, kernels="scalar").logits(tokens, cache=cache))

    for kernels in KERNELS:
        # A slow family with one of them: the others do not depend on kernels.
        settings = ((1, (7, T)), (2, (1, 64)), (3, (50,)))
        for threads, chunks in settings if kernels not in SLOW else ((2, (64,)),):
            engine = Engine.load(path, threads=threads, kernels=kernels)
            np.testing.assert_array_equal(bits(engine.logits(tokens, cache=cache)), expected)
            for chunk in chunks:
                session = engine.session(T, cache)
                for begin in range(0, T, chunk):
                    logits = session.feed(tokens[begin : begin + chunk])
                    last = min(begin + chunk, T) - 1
                    np.testing.assert_array_equal(bits(logits), expected[last])


@pytest.mark.parametrize("kernels", KERNELS[1:])
@pytest.mark.parametrize("stack", ["yoco-gret", "yoco-swa", "transformer"])
def test_logits_over_several_kv_splits_have_the_same_bits_for_any_chunking(
    model_of, stack, kernels
):
    path = model_of(stack, "ternary", window=700)[1]
    text = packed_models.tokens()[:1200].numpy()  # three KV splits: each has 512 positions
    together = Engine.load(path, threads=2, kernels=kernels).session(len(text), "f16")
    alone = Engine.load(path, threads=1, kernels=kernels).session(len(text), "f16")

    rows = together.feed_all(text)
    alone.feed(text[:1100])
    steps = np.stack([alone.step(token) for token in text[1100:]])

    np.testing.assert_array_equal(bits(rows[1100:]), bits(steps))


@pytest.mark.parametrize("stack", STACKS)
def test_early_exit_changes_no_bit(model_of, stack, tokens):
    engine = Engine.load(model_of(stack, "ternary")[1])
    eager, early = engine.session(T, "f32"), engine.session(T, "f32")

    eager.feed_all(tokens[:-1])
    early.feed(tokens[:-1])

    np.testing.assert_array_equal(bits(early.logits), bits(eager.logits))
    np.testing.assert_array_equal(bits(early.step(tokens[-1])), bits(eager.step(tokens[-1])))


def test_sessions_of_one_engine_are_independent(model_of, tokens):
    engine = Engine.load(model_of("mixed", "ternary")[1])
    expected = bits(engine.logits(tokens[:20], "f32"))
    one, two = engine.session(20, "f32"), engine.session(20, "f32")

    for t in range(20):
        two.step(tokens[T - 1 - t])
        np.testing.assert_array_equal(bits(one.step(tokens[t])), expected[t])


def forks(session: Session, tokens: np.ndarray, lengths: list[int]) -> list[Session]:
    """Return a session with the first tokens for each of the lengths, which differ."""
    of_length = {}
    for length in sorted(lengths):
        session.feed(tokens[session.position : length])
        of_length[length] = session.fork()
    return [of_length[length] for length in lengths]


@pytest.mark.parametrize(
    ("kernels", "threads"),
    # A slow family with one number of threads: threads do not depend on kernels.
    [(name, n) for name in KERNELS for n in (1, 2) if name not in SLOW or n == 2],
)
@pytest.mark.parametrize("stack", STACKS)
def test_logits_have_the_same_bits_for_any_batch_composition(
    model_of, stack, kernels, threads, tokens
):
    path = model_of(stack, "ternary")[1]
    engine = Engine.load(path, threads=threads, kernels=kernels)
    expected = bits(engine.logits(tokens, "f32"))
    sessions = forks(engine.session(T, "f32"), tokens, [1 + 3 * i % 97 for i in range(64)])

    for _ in range(4):
        logits = engine.step(sessions, [tokens[s.position] for s in sessions])
        for session, row in zip(sessions, logits, strict=True):
            np.testing.assert_array_equal(bits(row), expected[session.position - 1])


def test_a_batch_larger_than_one_pass_has_the_same_bits(model_of, tokens):
    engine = Engine.load(model_of("mixed", "ternary")[1])
    expected = bits(engine.logits(tokens[:1], "f32"))[0]
    sessions = [engine.session(1, "f32") for _ in range(300)]

    logits = engine.step(sessions, [tokens[0]] * 300)

    assert (bits(logits) == expected).all()


def test_a_callers_flush_to_zero_mode_changes_nothing(model_of, tokens):
    path = model_of("yoco-gret", "ternary")[1]
    expected = bits(Engine.load(path).logits(tokens, "f32"))
    torch.set_flush_denormal(True)
    try:
        np.testing.assert_array_equal(bits(Engine.load(path).logits(tokens, "f32")), expected)
    finally:
        torch.set_flush_denormal(False)
