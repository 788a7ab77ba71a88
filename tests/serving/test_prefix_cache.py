"""The prefix cache: hits, bit-identical to misses; eviction; and the store on disk."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import packed_models
import pytest
from servers import wait_for

from yocobit import Engine
from yocobit.serving.runtime.prefix_cache import BLOCK, PrefixCache
from yocobit.serving.runtime.prefix_store import PrefixStore

T = 500
AMPLE = 1 << 30


@pytest.fixture
def engine(engine_of) -> Engine:
    return engine_of("yoco-gret")


@pytest.fixture
def tokens() -> np.ndarray:
    return packed_models.tokens()[:T].numpy().astype(np.int32)


def prefix_cache(engine: Engine, capacity=AMPLE, store=None, model="model") -> PrefixCache:
    memory = engine.session(1, "f32").memory()
    per_token = memory.shared_kv_per_token + memory.full_per_token
    return PrefixCache(capacity, model, per_token, store)


def keep(cache: PrefixCache, engine: Engine, tokens) -> None:
    session = engine.session(T, "f32")
    session.feed(tokens)
    cache.store(session, cache.chain())


def find(cache: PrefixCache, tokens):
    return cache.find(np.asarray(tokens, dtype=np.int32), cache.chain())


@pytest.mark.parametrize("stack", ["yoco-gret", "yoco-swa", "transformer", "mixed"])
@pytest.mark.parametrize("kept", [1, 63, 64, 65, 200, 256])
def test_prefix_hit_is_bit_identical_to_a_miss(engine_of, tokens, stack, kept):
    engine = engine_of(stack)
    cache = prefix_cache(engine)
    keep(cache, engine, tokens[:kept])

    hit = find(cache, tokens)
    session = engine.session(T, "f32")
    session.restore(tokens[: hit.position], hit.state, hit.pieces)

    assert hit.position == kept
    found, expected = session.feed(tokens[kept:]), engine.session(T, "f32").feed(tokens)
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_empty_cache_has_no_hit(engine, tokens):
    assert find(prefix_cache(engine), tokens).position == 0


def test_last_token_of_a_prompt_is_never_a_hit(engine, tokens):
    cache = prefix_cache(engine)
    keep(cache, engine, tokens[:100])

    assert find(cache, tokens[:100]).position == 0
    assert find(cache, tokens[:101]).position == 100


def test_longest_prefix_is_found(engine, tokens):
    cache = prefix_cache(engine)
    for n in (10, 70, 90, 300):
        keep(cache, engine, tokens[:n])

    assert [find(cache, tokens[:n]).position for n in (11, 80, 91, 200, 400)] == [
        10,
        70,
        90,
        90,
        300,
    ]


@pytest.mark.parametrize("at", [0, 5, 64, 99])
def test_other_token_before_the_state_is_a_miss(engine, tokens, at):
    cache = prefix_cache(engine)
    keep(cache, engine, tokens[:100])
    other = tokens.copy()
    other[at] += 1

    assert find(cache, other).position == 0


def test_branch_point_is_reported(engine, tokens):
    """The second of two texts with a common prefix adds a checkpoint where a third resumes."""
    cache = prefix_cache(engine)
    keep(cache, engine, tokens[:300])
    other = np.concatenate([tokens[:200], tokens[:50]])

    hit = find(cache, other)

    assert hit.position == 0
    assert hit.branch_point == 192  # three whole blocks
    keep(cache, engine, other[: hit.branch_point])
    assert find(cache, other).position == 192


def test_model_without_states_resumes_after_any_block(engine_of, tokens):
    engine = engine_of("transformer")
    cache = prefix_cache(engine)
    keep(cache, engine, tokens[:300])
    other = np.concatenate([tokens[:200], tokens[:50]])

    hit = find(cache, other)
    session = engine.session(T, "f32")
    session.restore(other[: hit.position], hit.state, hit.pieces)

    assert (hit.position, hit.branch_point) == (192, 0)  # three whole blocks
    found, expected = session.feed(other[192:]), engine.session(T, "f32").feed(other)
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_model_with_states_resumes_at_a_state_only(engine, tokens):
    cache = prefix_cache(engine)
    keep(cache, engine, tokens[:300])

    assert find(cache, tokens[:250]).position == 0


def test_blocks_are_shared(engine, tokens):
    cache = prefix_cache(engine)
    keep(cache, engine, tokens[:256])
    size, entries = cache.size, len(cache)

    keep(cache, engine, [*tokens[:192], *tokens[:64]])

    assert len(cache) == entries + 2  # a block and a state
    assert cache.size < 1.5 * size


def test_storing_the_same_prefix_again_adds_nothing(engine, tokens):
    cache = prefix_cache(engine)
    keep(cache, engine, tokens[:200])
    size = cache.size

    keep(cache, engine, tokens[:200])

    assert cache.size == size


def test_least_recently_used_entries_are_evicted_at_capacity(engine, tokens):
    texts = [np.roll(tokens, 7 * i)[:130] for i in range(6)]
    one = prefix_cache(engine)
    keep(one, engine, texts[0])
    cache = prefix_cache(engine, capacity=3 * one.size)

    for text in texts[:3]:
        keep(cache, engine, text)
    find(cache, [*texts[0], 1])  # used again
    for text in texts[3:5]:
        keep(cache, engine, text)

    known = [find(cache, [*text, 1]).position for text in texts]
    assert known == [130, 0, 0, 130, 130, 0]
    assert cache.size <= 3 * one.size


@pytest.mark.parametrize("capacity", [0, 1000])
def test_capacity_may_be_smaller_than_any_entry(engine, tokens, capacity):
    cache = prefix_cache(engine, capacity=capacity)

    keep(cache, engine, tokens)

    assert cache.size <= capacity
    assert find(cache, [*tokens, 1]).position == 0


def test_size_equals_that_of_the_entries_after_many_sequences(engine):
    rng = np.random.default_rng(0)
    cache = prefix_cache(engine, capacity=400_000)

    for _ in range(60):
        text = rng.integers(0, 3, size=rng.integers(1, 200)).astype(np.int32)
        find(cache, [*text, 1])
        keep(cache, engine, text)

        assert cache.size == sum(entry.nbytes for entry in cache._entries.values()) <= 400_000
        assert set(cache._locations) <= set(cache._entries)
        counted = sum(sum(tails.values()) for tails in cache._tails.values())
        assert counted == len(cache._locations)


# ---- on disk ----


def stored(engine, directory, capacity=AMPLE, memory=AMPLE, model="model"):
    store = PrefixStore(directory, capacity)
    return prefix_cache(engine, memory, store, model), store


@pytest.fixture
def slow_disk(monkeypatch):
    """An event for which each file waits before it is renamed."""
    event, rename = threading.Event(), Path.rename
    monkeypatch.setattr(Path, "rename", lambda *paths: event.wait(60) and rename(*paths))
    yield event
    event.set()


def entry(size: int) -> np.ndarray:
    return np.zeros(size, dtype=np.uint8)


def rewrite(path: Path, data: bytes) -> None:
    """Replace the content of a file of the store, with a valid hash."""
    path.write_bytes(hashlib.blake2b(data, digest_size=32).digest() + data)


@pytest.mark.parametrize("stack", ["yoco-gret", "transformer", "retention"])
def test_stored_prefix_survives_the_server(engine_of, tokens, tmp_path, stack):
    engine = engine_of(stack)
    cache, store = stored(engine, tmp_path)
    keep(cache, engine, tokens[:200])
    store.close()

    cache, store = stored(engine, tmp_path)
    hit = find(cache, tokens)
    session = engine.session(T, "f32")
    session.restore(tokens[: hit.position], hit.state, hit.pieces)

    assert hit.position == 200
    expected = engine.session(T, "f32").feed(tokens)
    np.testing.assert_array_equal(session.feed(tokens[200:]), expected)
    store.close()


def test_prefix_on_disk_is_found_when_memory_is_too_small(engine, tokens, tmp_path):
    cache, store = stored(engine, tmp_path, memory=1)
    keep(cache, engine, tokens[:200])

    assert cache.size <= 1
    assert find(cache, tokens).position == 200
    store.close()


def test_prefix_of_another_model_is_not_found(engine, tokens, tmp_path):
    cache, store = stored(engine, tmp_path)
    keep(cache, engine, tokens[:200])
    store.close()

    cache, store = stored(engine, tmp_path, model="another")
    assert find(cache, tokens).position == 0
    store.close()


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "gone"])
def test_damaged_file_is_a_miss_and_is_replaced(engine, tokens, tmp_path, damage):
    cache, store = stored(engine, tmp_path)
    keep(cache, engine, tokens[:200])
    store.close()
    for path in tmp_path.iterdir():
        raw = path.read_bytes()
        if damage == "gone":
            path.unlink()
        else:
            changed = {"cut": raw[:-1], "flip": raw[:-1] + bytes([raw[-1] ^ 1]), "empty": b""}
            path.write_bytes(changed[damage])

    cache, store = stored(engine, tmp_path)
    assert find(cache, tokens).position == 0
    keep(cache, engine, tokens[:200])  # at once: three blocks and a state
    assert find(cache, tokens).position == 200
    store.close()


@pytest.mark.parametrize("kind", ["block", "state"])
def test_file_of_another_size_is_a_miss_and_is_replaced(engine, tokens, tmp_path, kind):
    """As if written by another build of the engine under the same name."""
    cache, store = stored(engine, tmp_path)
    keep(cache, engine, tokens[:120])
    store.close()
    (path,) = (path for path in tmp_path.iterdir() if ("-" in path.name) == (kind == "state"))
    rewrite(path, b"8 bytes.")

    cache, store = stored(engine, tmp_path)
    assert find(cache, tokens).position == 0
    keep(cache, engine, tokens[:120])
    assert find(cache, tokens).position == 120
    store.close()
    assert path.stat().st_size > 1000


def test_disk_is_bounded(engine, tokens, tmp_path):
    cache, store = stored(engine, tmp_path, capacity=200_000)
    for i in range(8):
        keep(cache, engine, np.roll(tokens, 7 * i)[:130])
    store.close()

    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 200_000


def test_other_files_in_the_directory_are_left_alone(engine, tokens, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "zz.prefix").write_text("mine")
    (tmp_path / ".half.prefix.partial-999999999").write_text("of a killed server")

    cache, store = stored(engine, tmp_path)
    keep(cache, engine, tokens[:70])
    store.close()

    assert (tmp_path / "notes.txt").exists()
    assert (tmp_path / "zz.prefix").exists()
    assert not (tmp_path / ".half.prefix.partial-999999999").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError("full")])
def test_failed_write_drops_only_its_entry(engine, tokens, tmp_path, monkeypatch, caplog, error):
    cache, store = stored(engine, tmp_path)

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        keep(cache, engine, tokens[:200])
        store.close()  # after it has tried to write all
    assert list(tmp_path.iterdir()) == []
    assert find(cache, tokens).position == 200  # from memory
    assert str(error.args[-1]) in caplog.text


def known_states(cache: PrefixCache) -> set[bytes]:
    """Return the keys of the registered states, after dropped ones are unregistered."""
    find(cache, [0])
    assert sum(sum(tails.values()) for tails in cache._tails.values()) == len(cache._locations)
    return set(cache._locations)


@pytest.mark.parametrize("memory", [1, 150_000, AMPLE])
def test_evicted_states_are_unregistered(engine, tokens, tmp_path, memory):
    cache, store = stored(engine, tmp_path, capacity=200_000, memory=memory)
    for i in range(20):
        keep(cache, engine, np.roll(tokens, 7 * i)[:70])
    store.close()

    states = known_states(cache)
    assert len(store.locations()) < 20
    assert states == {key for key in cache._entries if key in states} | set(store.locations())


def test_unwritten_states_are_unregistered(engine, tokens, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", fail)
    cache, store = stored(engine, tmp_path, memory=1)
    keep(cache, engine, tokens[:70])
    store.close()

    assert known_states(cache) == set()


def test_damaged_state_is_unregistered(engine, tokens, tmp_path):
    cache, store = stored(engine, tmp_path, memory=1)
    keep(cache, engine, tokens[:10])
    store.close()
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"")

    assert find(cache, tokens).position == 0
    assert known_states(cache) == set()


def test_pending_entries_of_a_slow_disk_are_bounded(tmp_path, slow_disk, caplog):
    store = PrefixStore(tmp_path, 1 << 20)
    keys = [bytes([i]) * 32 for i in range(64)]
    for key in keys:
        store.write(key, entry(1 << 18), None)
    n_pending = sum(each.nbytes for each in store._pending.values())
    slow_disk.set()
    store.close()

    assert n_pending == 1 << 20
    assert store.take_dropped()[:60] == keys[4:]
    assert caplog.text.count("too slow") == 1


def test_entry_that_is_written_again_counts_once(tmp_path, slow_disk):
    store = PrefixStore(tmp_path, AMPLE)
    store.write(bytes(32), entry(1000), None)
    store.write(bytes(32), entry(1000), None)  # while the first is pending
    store.write(bytes([1]) * 32, entry(1000), None)
    slow_disk.set()
    store.close()
    store = PrefixStore(tmp_path, AMPLE)
    store.write(bytes(32), entry(1000), None)  # already on disk
    store.close()

    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert store._size == sum(sizes)


def test_entry_is_readable_while_the_writer_moves_it(tmp_path):
    store = PrefixStore(tmp_path, AMPLE)

    class Files(OrderedDict):
        def __contains__(self, key):
            found = super().__contains__(key)
            if store._lock.acquire(blocking=False):  # the writer could, too
                self[key] = store._pending.pop(key)
                store._lock.release()
            return found

    store._files = Files()
    store._pending[bytes(32)] = entry(10)

    assert bytes(32) in store
    store.close()


def test_file_removed_by_another_server_does_not_fail_the_scan(tmp_path, monkeypatch):
    store = PrefixStore(tmp_path, AMPLE)
    for i in range(2):
        store.write(bytes([i]) * 32, entry(10), None)
    store.close()
    scandir = os.scandir

    def scan(directory):
        found = list(scandir(directory))
        (tmp_path / f"{bytes(32).hex()}.prefix").unlink()
        return found

    with monkeypatch.context() as patch:
        patch.setattr("os.scandir", scan)
        store = PrefixStore(tmp_path, AMPLE)
    store.close()

    assert [bytes([i]) * 32 in store for i in range(2)] == [False, True]


@pytest.mark.parametrize(
    "name",
    [
        "ab.prefix",
        f"{'ab' * 32}-{'cd' * 32}--5.prefix",
        f"{'ab' * 32}-{'cd' * 32}-99999.prefix",
        f"{'ab' * 32}-{'cd' * 31}-5.prefix",
        f"{'AB' * 32}.prefix",
    ],
)
def test_files_with_other_names_are_ignored(tmp_path, name):
    (tmp_path / name).write_text("mine")

    store = PrefixStore(tmp_path, capacity=1)
    store.close()

    assert store.locations() == {}
    assert (tmp_path / name).exists()


def test_stored_prefixes_are_private(tmp_path):
    directory = tmp_path / "prefixes"
    store = PrefixStore(directory, AMPLE)
    store.write(bytes(32), entry(10), None)
    store.close()

    (path,) = directory.iterdir()
    assert directory.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600


def test_blocks_are_whole_attention_tiles():
    assert BLOCK % 32 == 0


def test_servers_share_a_directory_without_a_restart(engine, tokens, tmp_path):
    one, one_store = stored(engine, tmp_path)
    other, other_store = stored(engine, tmp_path)
    for n, (writer, store, reader) in enumerate(
        [(one, one_store, other), (other, other_store, one)], 1
    ):
        keep(writer, engine, tokens[: 100 * n])
        wait_for(lambda store=store: not store._pending)

        wait_for(lambda reader=reader, n=n: find(reader, tokens).position == 100 * n)
    one_store.close()
    other_store.close()


def test_directory_is_not_scanned_again_unless_it_changed(tmp_path, monkeypatch):
    store = PrefixStore(tmp_path, AMPLE)
    os.utime(tmp_path, (1, 1))
    store.refresh()
    monkeypatch.setattr("os.scandir", lambda path: 1 / 0)
    store._next_scan_at = 0.0

    assert store.refresh() == {}
    store.close()


@pytest.mark.parametrize("kind", ["fifo", "directory", "link"])
def test_entry_that_is_no_regular_file_is_a_miss(tmp_path, kind):
    store = PrefixStore(tmp_path, AMPLE)
    store.write(bytes(32), entry(10), None)
    store.close()
    path = tmp_path / f"{bytes(32).hex()}.prefix"
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(path)

    assert store.read(bytes(32)) is None
    PrefixStore(tmp_path, AMPLE).close()


def test_clients_of_different_salts_share_no_entries(engine, tokens):
    per_token = engine.session(1, "f32").memory().shared_kv_per_token
    salts = {"key 0": b"a", "key 1": b"b"}
    cache = PrefixCache(AMPLE, "model", per_token, salts=salts)
    session = engine.session(T, "f32")
    session.feed(tokens[:200])
    cache.store(session, cache.chain("key 0"))

    found = [
        cache.find(tokens, cache.chain(client)).position for client in ("key 0", "key 1", "else")
    ]

    assert found == [200, 0, 0]


def test_discarded_prefix_is_a_miss_and_is_stored_again(engine, tokens, tmp_path):
    cache, store = stored(engine, tmp_path)
    keep(cache, engine, tokens[:200])
    chain = cache.chain()
    chain.extend(tokens)
    wait_for(lambda: not store._pending)

    cache.discard(tokens[:200], chain)

    assert find(cache, tokens).position == 0
    assert cache.size == 0
    keep(cache, engine, tokens[:200])
    assert find(cache, tokens).position == 200
    store.close()


def test_only_living_processes_keep_their_partial_files(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    for pid in (os.getpid(), process.pid, "x"):
        (tmp_path / f".{'ab' * 32}.prefix.partial-{pid}").write_bytes(b"")

    PrefixStore(tmp_path, AMPLE).close()

    assert [path.name.rpartition("-")[2] for path in tmp_path.iterdir()] == [str(os.getpid())]
