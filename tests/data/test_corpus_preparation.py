"""Preparation of a corpus: reuse of shards, atomic writes, bounded memory, and errors."""

import os
import signal
import threading
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import corpora
import pytest
from corpora import TEXT, read, write_jsonl

from yocobit.config import ConfigError
from yocobit.data import corpus as corpus_module
from yocobit.data import shards, sources, tokenization
from yocobit.data.config import DataConfig
from yocobit.data.corpus import prepare
from yocobit.data.held_out import _is_selected
from yocobit.data.tokenizer import train_tokenizer


@pytest.fixture
def config(tmp_path) -> DataConfig:
    return corpora.plain(tmp_path)


@pytest.fixture
def mixture(tmp_path) -> DataConfig:
    return corpora.mixture(tmp_path)


def test_valid_every_splits_by_name_independently_of_other_files(tmp_path):
    for i in range(60):
        (tmp_path / f"{i}.txt").write_text(f"text {i} " * 5)
    config = DataConfig(train=(str(tmp_path),), valid_every=4, vocab_size=257, context=4)
    before = prepare(config, 257, tmp_path / "data")
    held_out = before.tokenizer.decode(read(before.valid))
    (tmp_path / "aaa.txt").write_text("first now " * 5)

    after = prepare(config, 257, tmp_path / "data")

    # 60 names in one of 4 parts: 15 expected, 3.4 standard deviation.
    assert 5 <= held_out.count("text") / 5 <= 25
    assert held_out in after.tokenizer.decode(read(after.valid))


def test_shards_are_reused_until_the_text_changes(config, tmp_path):
    directory = tmp_path / "data"
    first = prepare(config, 270, directory)
    made = (directory / "train-0-00000.bin").stat().st_mtime_ns

    again = prepare(config, 270, directory)
    unchanged = (directory / "train-0-00000.bin").stat().st_mtime_ns
    Path(config.train[0]).write_text(TEXT + "# more\n")
    changed = prepare(config, 270, directory)

    assert unchanged == made
    assert again.sha256 == first.sha256
    assert changed.sha256 != first.sha256
    assert changed.train[0].n_bytes == first.train[0].n_bytes + 7


def test_progress_is_the_bytes_of_the_text(config, tmp_path):
    done: list[tuple[int, int]] = []

    prepare(config, 270, tmp_path / "data", progress=lambda *sizes: done.append(sizes))

    size = sum(Path(path).stat().st_size for path in (*config.train, *config.valid))
    assert done[-1] == (size, size)
    assert [n for n, _ in done] == sorted(n for n, _ in done)


def test_unchanged_files_are_not_read_again(config, tmp_path, monkeypatch):
    for path in (config.train[0], config.valid[0]):
        os.utime(path, (1, 1))
    first = prepare(config, 270, tmp_path / "data")
    monkeypatch.setattr(sources, "_sha256", None)

    assert prepare(config, 270, tmp_path / "data").sha256 == first.sha256


def test_files_moved_or_with_another_time_are_the_same_corpus(config, tmp_path):
    first = prepare(config, 270, tmp_path / "data")
    made = (tmp_path / "data" / "train-0-00000.bin").stat().st_mtime_ns
    (tmp_path / "moved").mkdir()
    moved = Path(config.train[0]).rename(tmp_path / "moved" / "train.txt")
    os.utime(moved, (1, 1))

    again = prepare(replace(config, train=(str(moved),)), 270, tmp_path / "data")

    assert again.sha256 == first.sha256
    assert (tmp_path / "data" / "train-0-00000.bin").stat().st_mtime_ns == made


def test_file_that_changes_during_tokenisation_is_refused(config, tmp_path, monkeypatch):
    run = tokenization._Tokenization.run

    def changing(self):
        Path(config.train[0]).write_text("other")
        return run(self)

    monkeypatch.setattr(tokenization._Tokenization, "run", changing)

    with pytest.raises(ConfigError, match=r"train\.txt: has changed while it was read"):
        prepare(config, 270, tmp_path / "data")
    assert not (tmp_path / "data" / "index.json").exists()


def test_killed_preparation_is_repeated(config, tmp_path, monkeypatch):
    whole = read(prepare(config, 270, tmp_path / "whole").train[0])
    monkeypatch.setattr(shards, "SHARD_BYTES", 100)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            corpus_module, "check_unchanged", lambda _: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        prepare(config, 270, tmp_path / "data")
    assert len(list((tmp_path / "data").glob("train-*"))) > 5
    monkeypatch.undo()

    corpus = prepare(config, 270, tmp_path / "data")

    assert read(corpus.train[0]) == whole
    assert len(list((tmp_path / "data").glob("train-*"))) == 1


def test_shards_do_not_depend_on_threads_or_batches(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": f"{TEXT} {i}"} for i in range(40)])
    (tmp_path / "tokenizer.json").write_text(train_tokenizer([TEXT], 270).to_str())
    tokenizer = str(tmp_path / "tokenizer.json")
    config = DataConfig(train=(path,), valid_every=3, tokenizer=tokenizer)
    made = [prepare(config, 1, tmp_path / "data")]
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    made.append(prepare(config, 1, tmp_path / "serial"))
    monkeypatch.setattr(tokenization, "_BATCH_LENGTH", 1)
    made.append(prepare(config, 1, tmp_path / "single"))

    assert len(made[0].valid) > 1000
    assert read(made[0].train[0]) == read(made[1].train[0]) == read(made[2].train[0])
    assert read(made[0].valid) == read(made[1].valid) == read(made[2].valid)


def test_memory_of_preparation_does_not_grow_with_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenization, "_BATCH_LENGTH", 1 << 14)
    monkeypatch.setattr(sources, "_CHUNK_BYTES", 1 << 14)
    (tmp_path / "tokenizer.json").write_text(train_tokenizer(["some words " * 9], 280).to_str())
    peaks = []
    for n_documents in (100, 800):
        texts = [{"text": f"{i} " + "some words " * 100} for i in range(n_documents)]
        path = write_jsonl(tmp_path / "text.jsonl", texts)
        tokenizer = str(tmp_path / "tokenizer.json")
        config = DataConfig(train=(path,), valid_every=20, tokenizer=tokenizer)
        prepare(config, 1, tmp_path / "warm")
        tracemalloc.start()
        prepare(config, 1, tmp_path / f"{n_documents}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    # Eight times the text, 0.9 MB of it.
    assert peaks[1] < 1.1 * peaks[0] + 50_000


def test_tokenizer_is_trained_on_a_bounded_part_of_every_file_by_weight(
    mixture, tmp_path, monkeypatch
):
    sample = []

    def recording(texts, vocab_size):
        sample.extend(texts)
        return train_tokenizer(sample, vocab_size)

    monkeypatch.setattr(tokenization, "SAMPLE_LENGTH", 1600)
    monkeypatch.setattr(tokenization, "train_tokenizer", recording)
    prepare(mixture, 257, tmp_path / "data")

    # Whole texts of 80 characters: 1200 and 400 characters are 15 and 5 of them.
    assert Counter(text[:3] for text in sample) == {"one": 15, "two": 5}


@pytest.fixture
def another_thread_receives_sigint():
    """The system may deliver it to any thread that does not block it."""
    ended = threading.Event()

    def receive():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        ended.wait()

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    receiver = threading.Thread(target=receive)
    receiver.start()
    yield
    ended.set()
    receiver.join()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_ctrl_c_ends_the_training_of_a_tokenizer(another_thread_receives_sigint):
    n_texts = 100_000_000  # minutes
    n_read = 0

    def texts():
        nonlocal n_read
        os.kill(os.getpid(), signal.SIGINT)
        for i in range(n_texts):
            n_read = i + 1
            yield f"text {i % 1000} " * 20

    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(texts(), 270)

    assert n_read < n_texts


def test_ctrl_c_ends_a_training_that_has_just_started(monkeypatch):
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def interrupted(thread):
        start(thread)
        started.append(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)

    with pytest.raises(KeyboardInterrupt):
        train_tokenizer((f"text {i % 1000} " for i in range(10_000_000)), 270)

    started[0].join(30)
    assert not started[0].is_alive()


def test_error_of_a_text_ends_the_training_of_a_tokenizer(config, tmp_path):
    Path(config.train[0]).write_bytes(TEXT.encode() + b"\xff")

    with pytest.raises(ConfigError, match=r"train\.txt: is not UTF-8"):
        prepare(config, 270, tmp_path / "data")


@pytest.mark.parametrize("damage", ["truncated", "no index", "index of another kind"])
def test_incomplete_shards_are_written_again(config, tmp_path, damage):
    directory = tmp_path / "data"
    whole = read(prepare(config, 270, directory).train[0])
    if damage == "truncated":
        (directory / "train-0-00000.bin").write_bytes(b"\0\0")
    else:
        (directory / "index.json").write_text("{" if damage == "no index" else "[]")

    assert read(prepare(config, 270, directory).train[0]) == whole


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train", r"train\.txt: no text for the train split"),
        ("valid", r"valid\.txt: no text for the valid split"),
    ],
)
def test_empty_split_is_refused(config, tmp_path, split, message):
    Path(getattr(config, split)[0]).write_text("")

    with pytest.raises(ConfigError, match=message):
        prepare(config, 270, tmp_path / "data")


def test_split_that_deduplication_empties_names_the_remedy(tmp_path):
    names = [f"{i}.txt" for i in range(10, 99)]
    held_out = next(name for name in names if _is_selected(name, 4))
    kept = next(name for name in names if not _is_selected(name, 4))
    for name in (kept, held_out):
        (tmp_path / name).write_text(TEXT)
    config = DataConfig(
        train=(str(tmp_path),), valid_every=4, vocab_size=270, context=8, deduplicate=True
    )

    with pytest.raises(ConfigError, match=r"no text for the (valid split; add doc|train)"):
        prepare(config, 270, tmp_path / "data")


def test_ignored_files_are_counted_even_if_shards_are_reused(config, tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text(TEXT)
    config = replace(config, train=(str(tmp_path / "text"),))
    first = prepare(config, 270, tmp_path / "data")
    (tmp_path / "text" / "b.csv").write_text("a,b")

    again = prepare(config, 270, tmp_path / "data")

    line = "ignored 1 files of other kinds: 1 .csv"
    assert line not in first.describe() and line in again.describe()
    assert again.sha256 == first.sha256


def test_text_shorter_than_one_window_is_refused_with_both_numbers(config, tmp_path):
    Path(config.train[0]).write_text("abc")

    with pytest.raises(ConfigError, match=r"has 4 tokens but one window needs 8"):
        prepare(config, 257, tmp_path / "data")
