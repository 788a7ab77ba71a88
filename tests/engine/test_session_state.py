"""Truncated, forked and restored sessions have the logits of a session that was fed all tokens."""

from __future__ import annotations

import json
import os

import numpy as np
import packed_models
import pytest
from packed_models import STACKS

from yocobit import Engine
from yocobit.engine import SavedSessionError
from yocobit.engine.saved_session import SavedSession

CACHES = ("f32", "f16", "int8", "int4")
T = 200  # more than a window and its ring


@pytest.fixture
def engine(engine_of) -> Engine:
    return engine_of("mixed")


@pytest.fixture
def tokens() -> np.ndarray:
    return packed_models.tokens()[:T].numpy()


def bits(array) -> np.ndarray:
    """Floats as integers, so that equality means the same bits."""
    return np.ascontiguousarray(array).view(np.uint32)


def fed(engine: Engine, tokens, cache="f32", max_tokens=T):
    session = engine.session(max_tokens, cache)
    session.feed(tokens)
    return session


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("cut", [15, 100])
def test_a_fork_continues_with_the_same_bits(engine_of, tokens, stack, cache, cut):
    engine = engine_of(stack)
    expected = fed(engine, tokens, cache).logits
    first = fed(engine, tokens[:cut], cache)

    second = first.fork()
    first.feed(tokens[::-1][:50])  # does not affect the fork

    np.testing.assert_array_equal(bits(second.feed(tokens[cut:])), bits(expected))


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("cut", [1, 15, 100])
def test_a_truncated_session_continues_with_the_same_bits(engine_of, tokens, stack, cache, cut):
    engine = engine_of(stack)
    expected = fed(engine, tokens, cache).logits
    session = fed(engine, tokens[:cut], cache)

    snapshot = session.snapshot()
    session.feed(tokens[::-1][: T - cut])
    session.truncate(snapshot)

    assert session.position == cut
    np.testing.assert_array_equal(session.tokens, tokens[:cut])
    np.testing.assert_array_equal(bits(session.feed(tokens[cut:])), bits(expected))


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("stack", STACKS)
def test_a_restored_session_continues_with_the_same_bits(engine_of, tokens, stack, cache, tmp_path):
    engine = engine_of(stack)
    expected = fed(engine, tokens, cache).logits
    engine.save(fed(engine, tokens[:100], cache), tmp_path / "text.session")

    session = engine.restore(tmp_path / "text.session")

    assert session.cache == cache
    assert session.max_tokens == 200
    np.testing.assert_array_equal(bits(session.feed(tokens[100:])), bits(expected))


def test_saved_session_restores_with_other_kernels_and_threads(engine, tokens, tmp_path):
    expected = fed(engine, tokens).logits
    engine.save(fed(engine, tokens[:100]), tmp_path / "text.session")
    other = Engine.load(engine.model.path, threads=2, kernels="scalar")

    session = other.restore(tmp_path / "text.session")

    np.testing.assert_array_equal(bits(session.feed(tokens[100:])), bits(expected))


def test_fork_of_an_empty_session_is_empty(engine, tokens):
    session = engine.session(T, "f32").fork()

    assert session.position == 0
    np.testing.assert_array_equal(bits(session.feed(tokens)), bits(fed(engine, tokens).logits))


def test_fork_has_the_given_capacity(engine, tokens):
    session = fed(engine, tokens, max_tokens=T).fork(T + 1)

    session.step(1)

    with pytest.raises(ValueError, match="has room for 201 tokens"):
        session.step(1)
    with pytest.raises(ValueError, match="room for 199 tokens but is given 200"):
        fed(engine, tokens).fork(T - 1)


def test_snapshot_truncates_another_session_with_the_same_prefix(engine, tokens):
    snapshot = fed(engine, tokens[:50]).snapshot()
    other = fed(engine, [*tokens[:50], 1, 2, 3])

    other.truncate(snapshot)

    np.testing.assert_array_equal(bits(other.feed(tokens[50:])), bits(fed(engine, tokens).logits))


def test_snapshot_of_another_prefix_is_rejected(engine, tokens):
    snapshot = fed(engine, tokens[:50]).snapshot()
    shorter, other = fed(engine, tokens[:49]), fed(engine, [1, *tokens[1:60]])
    before = bits(other.logits.copy())

    for session in (shorter, other):
        with pytest.raises(ValueError, match="does not hold the first 50 tokens"):
            session.truncate(snapshot)

    np.testing.assert_array_equal(bits(other.logits), before)
    assert other.position == 60


def test_a_truncated_session_has_no_logits(engine, tokens):
    session = fed(engine, tokens[:50])
    session.truncate(session.snapshot())

    with pytest.raises(ValueError, match="has no logits"):
        _ = session.logits


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s | {"state": s["state"][:-1]}, "the state after 50 tokens has"),
        (lambda s: s | {"positions": [s["positions"][0][:-1]]}, "bytes each but a piece has"),
        (lambda s: s | {"positions": []}, "but are given 0"),
        (lambda s: s | {"tokens": [*s["tokens"][:-1], 10**6]}, "token 49 must be in the vocab"),
        (lambda s: s | {"kept": -1}, "does not hold the first -1"),
        (lambda s: s | {"kept": 51}, "does not hold the first 51"),
    ],
)
def test_restore_of_mismatched_state_is_rejected_and_changes_nothing(
    engine, tokens, change, message
):
    source, session = fed(engine, tokens[:50]), fed(engine, tokens[:20])
    whole = {
        "tokens": list(source.tokens),
        "state": source.copy_state(),
        "positions": [source.copy_positions(0, 50)],
        "kept": 0,
    }

    with pytest.raises(ValueError, match=message):
        session.restore(**change(whole))

    assert session.position == 20
    np.testing.assert_array_equal(bits(session.feed(tokens[20:])), bits(fed(engine, tokens).logits))


def test_positions_restore_from_several_pieces(engine, tokens):
    source, session = fed(engine, tokens[:100]), engine.session(T, "f32")

    pieces = [source.copy_positions(a, a + 20) for a in range(0, 100, 20)]
    session.restore(tokens[:100], source.copy_state(), pieces)

    np.testing.assert_array_equal(
        bits(session.feed(tokens[100:])), bits(fed(engine, tokens).logits)
    )


def test_positions_that_are_not_cached_cannot_be_copied(engine, tokens):
    session = fed(engine, tokens[:50])

    for begin, end in ((-1, 10), (0, 51), (10, 5)):
        with pytest.raises(ValueError, match="holds 50 tokens"):
            session.copy_positions(begin, end)


# ---- files ----


def test_saved_session_of_another_model_is_rejected(engine_of, tokens, tmp_path):
    file = tmp_path / "text.session"
    engine_of("retention").save(fed(engine_of("retention"), tokens), file)

    with pytest.raises(SavedSessionError, match=r"text\.session: was made by the model .* load"):
        engine_of("mixed").restore(file)


@pytest.mark.parametrize(("exact", "made"), [(False, "int8"), (True, "int16")])
def test_saved_session_with_other_activations_is_rejected_by_name(
    model_of, tokens, exact, made, tmp_path
):
    _, path = model_of("retention", "sign_g128")
    engine = Engine.load(path, threads=1, exact=exact)
    engine.save(fed(engine, tokens), tmp_path / "text.session")

    with pytest.raises(SavedSessionError, match=rf"with {made} activations .* exact={exact}"):
        Engine.load(path, threads=1, exact=not exact).restore(tmp_path / "text.session")


def test_session_of_another_engine_is_not_saved(engine_of, tokens, tmp_path):
    file = tmp_path / "text.session"

    with pytest.raises(SavedSessionError, match="must be of this engine"):
        engine_of("mixed").save(fed(engine_of("retention"), tokens), file)

    assert not file.exists()


def test_saved_session_with_a_changed_byte_is_rejected(engine, tokens, tmp_path):
    file = tmp_path / "text.session"
    engine.save(fed(engine, tokens), file)
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")

    for at in (header, header + 1000, len(whole) - 1):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(SavedSessionError, match="do not match their hash"):
            engine.restore(file)


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_truncated_session_file_is_rejected(engine, tokens, tmp_path, size):
    file = tmp_path / "text.session"
    engine.save(fed(engine, tokens), file)
    file.write_bytes(file.read_bytes()[:size])

    with pytest.raises(SavedSessionError, match=r"text\.session: is not a saved session"):
        engine.restore(file)


@pytest.mark.parametrize("place", ["absent", "a_file"])
def test_session_that_cannot_be_written_is_one_clear_error(engine, tokens, tmp_path, place):
    (tmp_path / "a_file").touch()

    with pytest.raises(SavedSessionError) as raised:
        engine.save(fed(engine, tokens), tmp_path / place / "text.session")

    assert str(raised.value).startswith(f"{tmp_path / place / 'text.session'}: cannot be written (")


def test_other_files_are_rejected_as_sessions(engine, tmp_path):
    with pytest.raises(SavedSessionError, match="no such file"):
        engine.restore(tmp_path / "absent")
    with pytest.raises(SavedSessionError, match="is not a saved session"):
        engine.restore(engine.model.file)


@pytest.mark.parametrize("key, value", [("format_version", "9"), ("cache", "int2")])
def test_metadata_of_a_session_file_is_checked(engine, tokens, tmp_path, key, value):
    file = tmp_path / "text.session"
    engine.save(fed(engine, tokens), file)
    whole = file.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    header["__metadata__"][key] = value
    raw = json.dumps(header).encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + whole[8 + size :])

    with pytest.raises(SavedSessionError, match=value):
        engine.restore(file)


def test_saving_over_a_session_leaves_no_other_file(engine, tokens, tmp_path):
    file = tmp_path / "text.session"

    engine.save(fed(engine, tokens[:10]), file)
    engine.save(fed(engine, tokens[:20]), file)

    assert [path.name for path in tmp_path.iterdir()] == ["text.session"]
    assert engine.restore(file).position == 20


# ---- prefill in a decode step ----


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("sizes", [(1,), (40, 3), (150, 30, 20)])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_prefill_in_a_decode_step_changes_no_bit(engine_of, tokens, stack, sizes, n):
    engine = engine_of(stack)
    others = [fed(engine, tokens[: 10 + i]) for i in range(n)]
    alone = [fed(engine, [*tokens[: 10 + i], i + 7]).logits for i in range(n)]
    sessions = [engine.session(T, "f32") for _ in sizes]
    parts = [(session, tokens[:size]) for session, size in zip(sessions, sizes, strict=True)]

    logits = engine.step(others, [i + 7 for i in range(n)], prompts=parts)

    np.testing.assert_array_equal(
        bits(logits), bits(np.reshape(np.array(alone, dtype=np.float32), logits.shape))
    )
    for session, size in zip(sessions, sizes, strict=True):
        assert session.position == size
        np.testing.assert_array_equal(
            bits(session.step(3)), bits(fed(engine, [*tokens[:size], 3]).logits)
        )


def test_step_rejects_a_repeated_session(engine, tokens):
    session = engine.session(T, "f32")

    with pytest.raises(ValueError, match="sessions must differ"):
        engine.step([session], [1], prompts=[(session, tokens[:5])])
    with pytest.raises(ValueError, match="needs a session"):
        engine.step([], [])

    assert session.position == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tokens, state, positions: tokens.__setitem__(3, 512), "token 3 must be in the voc"),
        (lambda tokens, state, positions: tokens.__setitem__(3, -1), "token 3 must be in the voc"),
        (lambda tokens, state, positions: state.__setitem__(slice(None), 255), "must be finite"),
        (lambda tokens, state, positions: positions.__setitem__(slice(-8, None), 255), "finite"),
        (lambda tokens, state, positions: tokens.resize(7, refcheck=False), "after 7 tokens must"),
        (lambda tokens, state, positions: state.resize(7, refcheck=False), "bytes but have .7, "),
        (lambda tokens, state, positions: positions.resize(7, refcheck=False), "bytes but have"),
    ],
)
@pytest.mark.parametrize("cache", CACHES)
def test_a_session_file_with_a_correct_hash_is_checked_against_the_model(
    engine, tokens, tmp_path, change, message, cache
):
    source, file = fed(engine, tokens[:50], cache), tmp_path / "text.session"
    parts = [source.tokens, source.copy_state(), source.copy_positions(0, 50)]
    change(*parts)
    SavedSession(engine.model.metadata["header_sha256"], cache, *parts).write(file)

    with pytest.raises(SavedSessionError, match=message) as raised:
        engine.restore(file)

    assert str(raised.value).startswith(f"{file}: ")


def test_a_session_file_that_is_a_fifo_is_refused_without_waiting(engine, tmp_path):
    os.mkfifo(tmp_path / "text.session")

    with pytest.raises(SavedSessionError, match="must be a regular file"):
        engine.restore(tmp_path / "text.session")
