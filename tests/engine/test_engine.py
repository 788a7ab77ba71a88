"""Buffers, memory and invalid arguments of engines and sessions.

Letters: T positions   V vocabulary
"""

from __future__ import annotations

import numpy as np
import pytest
from packed_models import STACKS

from yocobit import Engine
from yocobit.benchmark.random_model import write_random_model
from yocobit.config import ConfigError, preset


def bits(array) -> np.ndarray:
    """Floats as integers, so that equality means the same bits."""
    return np.ascontiguousarray(array).view(np.uint32)


# ---- out ----


def test_logits_go_to_out_and_are_the_same(engine, tokens):
    expected = engine.logits(tokens[:8], "f32")
    V = engine.config.vocab_size
    row, rows = np.empty(V, np.float32), np.empty((5, V), np.float32)
    session, other = engine.session(8, "f32"), engine.session(8, "f32")

    assert session.feed(tokens[:2], out=row) is row is session.logits
    np.testing.assert_array_equal(bits(row), bits(expected[1]))
    assert session.step(tokens[2], out=row) is row
    np.testing.assert_array_equal(bits(row), bits(expected[2]))
    assert session.feed_all(tokens[3:8], out=rows) is rows
    np.testing.assert_array_equal(bits(rows), bits(expected[3:8]))
    assert engine.step([other], tokens[:1], out=rows[:1]).base is rows
    np.testing.assert_array_equal(bits(rows[0]), bits(expected[0]))


@pytest.mark.parametrize(
    ("out", "actual"),
    [
        (np.empty(511, np.float32), r"float32 of shape \(511,\)"),
        (np.empty((1, 512), np.float32), r"float32 of shape \(1, 512\)"),
        (np.empty(512), r"float64 of shape \(512,\)"),
        (np.empty(512, ">f4"), r">f4 of shape \(512,\)"),
        (np.empty(1024, np.float32)[::2], r"not contiguous, with strides \(8,\)"),
        (np.broadcast_to(np.float32(0), 512), "not contiguous"),
        (np.frombuffer(bytes(2048), np.float32), "read-only"),
        ([0.0] * 512, "list"),
    ],
)
def test_an_invalid_out_is_rejected_and_changes_nothing(engine, out, actual):
    session = engine.session(8, "f32")

    with pytest.raises(ValueError, match=r"out must be .* of shape \(512,\) .* but is " + actual):
        session.step(1, out=out)
    with pytest.raises(ValueError, match=r"out must be .* of shape \(2, 512\)"):
        engine.step([session, engine.session(8, "f32")], [1, 1], out=out)

    assert session.position == 0


# ---- memory ----


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("cache", ["f32", "f16", "int8", "int4"])
def test_memory_grows_by_the_growing_caches_only(model_of, stack, cache):
    engine = Engine.load(model_of(stack, "ternary")[1])
    config = engine.config

    small, large = engine.session(192, cache).memory(), engine.session(1216, cache).memory()

    value_bits = {"f32": 32, "f16": 16, "int8": 8, "int4": 4}[cache]
    scale_bytes = 4 if cache in ("int8", "int4") else 0
    per_cache = 2 * config.n_kv_heads * (config.head_dim * value_bits // 8 + scale_bytes)
    n_caches = config.layers.count("full") + ("cross" in config.layers)
    assert large.total - small.total == 1024 * n_caches * per_cache
    assert large.shared_kv_per_token == (per_cache if "cross" in config.layers else 0)
    assert large.full_per_token == config.layers.count("full") * per_cache
    state = 4 * config.d_model * config.self_head_dim
    assert large.retention == config.layers.count("retention") * state


def test_activation_buffers_do_not_grow_with_sessions(model_of):
    engine = Engine.load(model_of("yoco-gret", "ternary")[1])
    before = engine.buffer_bytes
    rows = 128 * 4 * (6 * engine.config.d_model + 3 * engine.config.d_ff)

    engine.session(100_000, "f32")

    assert engine.buffer_bytes == before > rows * 0.8


# ---- bad input ----


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([0, 512], r"token 1 must be in \[0, 512\) but is 512"),
        ([-1], r"token 0 must be in \[0, 512\) but is -1"),
        ([], "at least one token"),
        ([0.5], "must be a list of integers but are float64"),
        ([[1, 2]], r"of shape \(1, 2\)"),
        ([1 << 40], "must fit 32 bits"),
        ([0] * 9, "has room for 8 tokens and holds 2, so 9 more do not fit"),
    ],
)
def test_invalid_tokens_are_rejected_and_change_nothing(engine, tokens, message):
    session, undisturbed = engine.session(8, "f32"), engine.session(8, "f32")
    session.feed([1, 2])
    undisturbed.feed([1, 2])

    with pytest.raises(ValueError, match=message):
        session.feed(tokens)

    assert session.position == 2
    np.testing.assert_array_equal(session.step(3), undisturbed.step(3))


def test_invalid_steps_are_rejected_and_change_nothing(engine, model_of):
    one, two = engine.session(2, "f32"), engine.session(2, "f32")
    other = Engine.load(model_of("yoco-gret", "ternary")[1]).session(2, "f32")
    two.feed([1, 2])

    for sessions, tokens, message in (
        ([one, one], [1, 2], "must differ but one is given twice"),
        ([one], [1, 2], "one token for each session but got 2 for 1"),
        ([], [], "needs a session"),
        ([one, two], [1, 2], "has room for 2 tokens and holds 2"),
        ([one, other], [1, 2], "must be of this engine"),
        ([one], [512], r"must be in \[0, 512\)"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.step(sessions, tokens)

    assert one.position == other.position == 0


def test_logits_before_the_first_token_are_an_error(engine):
    with pytest.raises(ValueError, match="feed it a token first"):
        _ = engine.session(8, "f32").logits


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads must be at least 1 but is 0"),
        ({"threads": 1025}, "threads must be at most 1024 but is 1025"),
        ({"threads": 10**20}, "threads must be at most 1024 but is 100000000000000000000"),
        ({"threads": 1.5}, "threads must be an integer but is 1.5"),
        ({"threads": "2"}, "threads must be an integer but is '2'"),
        ({"kernels": "avx1024"}, "kernels must be scalar .*but is 'avx1024'"),
    ],
)
def test_invalid_threads_and_kernels_are_rejected(model_of, options, message):
    with pytest.raises(ConfigError, match=message):
        Engine.load(model_of("yoco-gret", "ternary")[1], **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "max_tokens must be at least 1 but is 0"),
        ((-1,), "max_tokens must be at least 1 but is -1"),
        ((1 << 50,), "max_tokens must be at most 1099511627776 but is 1125899906842624"),
        ((10**20,), "max_tokens must be at most 1099511627776 but is 1000"),
        ((10**5000,), "max_tokens must be at most 1099511627776 but is too large to show"),
        ((2.0,), "max_tokens must be an integer but is 2.0"),
        ((True,), "max_tokens must be an integer but is True"),
        ((8, "f64"), "cache must be f32 or f16 or int8 or int4 but is 'f64'"),
    ],
)
def test_invalid_sessions_are_rejected(engine, arguments, message):
    with pytest.raises(ConfigError, match=message):
        engine.session(*arguments)


def test_sessions_larger_than_memory_raise_memory_error(engine):
    with pytest.raises(MemoryError):
        engine.session(1 << 40, "f32")


@pytest.mark.parametrize(
    "call",
    [
        lambda engine, session: session.feed("text"),
        lambda engine, session: session.feed([]),
        lambda engine, session: session.feed([10**20]),
        lambda engine, session: session.feed([1.5]),
        lambda engine, session: session.feed([[1, 2]]),
        lambda engine, session: session.feed([1] * 100),
        lambda engine, session: session.step(-1),
        lambda engine, session: session.keys_values(10**20, 0, 1),
        lambda engine, session: session.keys_values(2, 0, 10**20),
        lambda engine, session: session.keys_values(2, 1, 0),
        lambda engine, session: session.retention_state(-1),
        lambda engine, session: session.retention_state("0"),
        lambda engine, session: session.copy_positions(0, 1 << 40),
        lambda engine, session: session.copy_positions(-1, 1),
        lambda engine, session: session.copy_positions(2, 1),
        lambda engine, session: session.restore([1], np.zeros(3), []),
        lambda engine, session: session.restore([1], np.zeros(3, np.uint8), [b"x"]),
        lambda engine, session: session.restore([1], session.copy_state(), [], kept=10**20),
        lambda engine, session: session.restore([1], session.copy_state()[::2], []),
        lambda engine, session: session.fork(1),
        lambda engine, session: engine.step([session], []),
        lambda engine, session: engine.step([session, session], [1, 1]),
        lambda engine, session: engine.step([session], [1], prompts=[(session, [1])]),
        lambda engine, session: engine.step([], []),
        lambda engine, session: engine.step([session], [1], out=np.empty(3, np.float32)),
        lambda engine, session: Engine.load().step([session], [1]),
        lambda engine, session: engine.logits([[]], "f32"),
    ],
)
def test_invalid_arguments_raise_and_leave_the_session_as_it_was(engine, call):
    session = engine.session(8, "f32")
    before = session.feed([1, 2]).copy()

    with pytest.raises((ValueError, IndexError)) as raised:
        call(engine, session)

    assert "\n" not in str(raised.value)
    assert session.position == 2
    np.testing.assert_array_equal(bits(session.logits), bits(before))
    np.testing.assert_array_equal(
        bits(session.step(3)), bits(engine.session(3, "f32").feed([1, 2, 3]))
    )


def test_a_huge_window_reserves_no_more_than_the_capacity(tmp_path):
    config = preset("nano").replace(layers=("window", "cross"), window=1 << 24)
    engine = Engine.load(write_random_model(config, tmp_path / "model").path, threads=1)

    assert engine.session(64, "f32").memory().window == 64 * 2 * 2 * 32 * 4  # 2 KV heads of 32


def test_keys_values_rejects_positions_that_are_not_cached(engine):
    session = engine.session(8, "f32")
    session.feed([1, 2])

    for begin, end in ((0, 3), (-1, 1), (2, 1)):
        with pytest.raises(IndexError):
            session.keys_values(3, begin, end)


def test_yocobit_engine_imports_without_torch():
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['torch'] = None; import yocobit, yocobit.engine, yocobit.packing;"
        "import yocobit.cli; assert yocobit.Engine"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_jinja_is_imported_when_a_chat_template_is_read():
    import subprocess
    import sys

    code = (
        "import sys, yocobit, yocobit.cli; engine = yocobit.Engine.load();"
        "assert 'jinja2' not in sys.modules; engine.chat_template; assert 'jinja2' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
