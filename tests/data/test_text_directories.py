"""Text directories as they are on disk: links, hidden files, FIFOs, runs, and odd names."""

import io
import os
import socket
import threading
from collections import Counter
from pathlib import Path

import corpora
import pytest

from yocobit.config import ConfigError
from yocobit.data import sources
from yocobit.data.config import DataConfig, SourceConfig
from yocobit.data.corpus import prepare
from yocobit.data.documents import DocumentReader
from yocobit.data.paths import Listing
from yocobit.data.sources import describe_ignored, hash_files, list_files


def listed(path: Path | str, *exclude: str) -> tuple[list[str], Counter[str]]:
    ignored = Counter()
    files = list_files(SourceConfig(path=str(path)), exclude, ignored)
    return [file.name for file in files], ignored


@pytest.fixture
def texts(tmp_path) -> Path:
    directory = tmp_path / "texts"
    directory.mkdir()
    (directory / "a.txt").write_text("a")
    return directory


@pytest.mark.parametrize("pattern", ["", "*", "**", "**/*", "**/*.txt"])
def test_special_files_are_left_out_and_counted(texts, pattern):
    os.mkfifo(texts / "fifo.txt")
    (texts / "gone.txt").symlink_to("absent.txt")
    (texts / "loop.txt").symlink_to("loop.txt")
    (texts / "device.txt").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(texts / "s.txt"))

        names, ignored = listed(texts / pattern)

    assert names == ["a.txt"]
    assert ignored == {"FIFO": 1, "socket": 1, "device": 1, "link without a target": 2}


def test_special_files_are_refused_by_name(texts):
    os.mkfifo(texts / "fifo.txt")
    (texts / "device.txt").symlink_to("/dev/zero")

    with pytest.raises(ConfigError, match=r"fifo\.txt: must be a regular file but is a FIFO"):
        listed(texts / "fifo.txt")
    with pytest.raises(ConfigError, match=r"device\.txt: must be a regular file but is a device"):
        listed(texts / "device.txt")


def test_file_that_becomes_a_fifo_after_it_was_listed_is_refused(texts):
    files = list_files(SourceConfig(path=str(texts)), ())
    (texts / "a.txt").unlink()
    os.mkfifo(texts / "a.txt")

    with pytest.raises(ConfigError, match="must be a regular file"):
        list(DocumentReader(files))


@pytest.mark.parametrize("pattern", ["", "**/*", "**/**/**/*.txt"])
def test_links_to_directories_are_not_followed_and_loops_end(texts, pattern):
    for i in range(9):  # 9 links to the parent: 9^40 paths
        (texts / f"up{i}").symlink_to(".")

    names, ignored = listed(texts / pattern)

    assert names == ["a.txt"]
    assert ignored == {"link to a directory": 9}


def test_links_to_files_and_a_link_that_is_the_source_are_followed(texts, tmp_path):
    # As in the cache of Hugging Face's hub, whose files are links.
    (tmp_path / "blob").write_text("b")
    (texts / "b.txt").symlink_to("../blob")
    (tmp_path / "link").symlink_to("texts")

    assert listed(tmp_path / "link")[0] == ["a.txt", "b.txt"]
    assert listed(tmp_path / "*k" / "b.txt")[0] == ["link/b.txt"]


@pytest.mark.parametrize("pattern", ["", "*", "**/*"])
def test_hidden_files_and_directories_are_left_out_and_counted(texts, pattern):
    for name in (".git", ".ipynb_checkpoints"):
        (texts / name).mkdir()
        (texts / name / "x.txt").write_text("x")
    for name in (".notes.md", ".DS_Store"):
        (texts / name).write_text("x")

    names, ignored = listed(texts / pattern)

    assert names == ["a.txt"]
    n_hidden_directories = 0 if pattern == "*" else 2
    assert ignored["hidden"] == 1
    assert ignored["hidden directory"] == n_hidden_directories


def test_hidden_names_that_the_pattern_spells_are_listed(texts):
    (texts / ".notes").mkdir()
    (texts / ".notes" / ".x.txt").write_text("x")
    (texts / ".notes" / "y.txt").write_text("x")

    assert listed(texts / ".notes")[0] == ["y.txt"]
    assert listed(texts / ".notes" / ".*.txt")[0] == [".x.txt"]
    assert listed(texts / ".n*" / "*.txt")[0] == [".notes/y.txt"]


def test_run_directories_below_are_left_out(texts):
    manifest = '{"config": {}, "corpus": {}, "starts": []}'
    runs = {
        "started": {".yocobit.lock": ""},
        "old": {"run.json": manifest},
        "without a manifest": dict.fromkeys(
            (f"checkpoints/step-000001/{name}" for name in ("state.json", "train.json")), "{}"
        ),
    }
    for run, files in runs.items():
        for name, text in {"README.md": "x", "samples/step-1.txt": "x", **files}.items():
            (texts / "runs" / run / name).parent.mkdir(parents=True, exist_ok=True)
            (texts / "runs" / run / name).write_text(text)

    names, ignored = listed(texts)

    assert names == ["a.txt"]
    assert ignored["run directory"] == 3
    assert listed(texts / "runs" / "started")[0] == ["README.md", "samples/step-1.txt"]


@pytest.mark.parametrize("name", ["data/index.json", "run.json", "checkpoints/step-1/state.json"])
def test_directory_of_a_user_with_a_name_of_a_run_is_listed(texts, name):
    (texts / "site" / name).parent.mkdir(parents=True)
    (texts / "site" / name).write_text("{}")
    (texts / "site" / "x.txt").write_text("x")

    assert "site/x.txt" in listed(texts)[0]


def test_directories_may_be_nested_a_thousand_deep(texts, monkeypatch):
    monkeypatch.chdir(texts)
    for _ in range(1500):  # a path of 3,000 bytes
        os.mkdir("d")
        os.chdir("d")
    Path("deep.txt").write_text("x")
    try:
        assert listed(texts)[0] == ["a.txt", "d/" * 1500 + "deep.txt"]
    finally:  # shutil.rmtree is recursive
        os.unlink("deep.txt")
        for _ in range(1500):
            os.chdir("..")
            os.rmdir("d")


def test_unreadable_directory_is_refused_and_can_be_excluded(texts, monkeypatch):
    (texts / "private").mkdir()
    scandir = os.scandir

    def forbidding(path):
        if os.fspath(path).endswith("private"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidding)

    with pytest.raises(ConfigError, match=r"private: cannot be read \(Permission denied\); excl"):
        listed(texts)
    assert listed(texts, "private")[0] == ["a.txt"]


def test_names_that_are_not_utf8_or_have_control_characters_are_read(texts, tmp_path):
    (texts / os.fsdecode(b"\xff\x1b[31m\n.txt")).write_text("b")
    (texts / os.fsdecode(b"c.\xff\n")).write_text("c")
    valid = (str(texts / "a.txt"),)
    config = DataConfig(train=(str(texts),), valid=valid, vocab_size=257, context=2)

    names, ignored = listed(texts)
    corpora = [prepare(config, 257, tmp_path / "data") for _ in range(2)]

    assert names == ["a.txt", "\\xff\x1b[31m\n.txt"]
    assert ignored == {".\\udcff\\n": 1}
    assert corpora[0].train[0].n_documents == 2
    assert corpora[1].sha256 == corpora[0].sha256
    assert all(line.isprintable() for line in corpora[1].describe())


def test_line_about_ignored_files_is_short(texts):
    for i in range(100):
        (texts / f"b.{i:099d}").write_text("")

    line = describe_ignored(listed(texts)[1])

    assert line.startswith("ignored 100 files of other kinds: ") and line.endswith(", 90 others")
    assert len(line) < 400


def test_empty_files_of_a_directory_are_counted(texts):
    for name in ("b.txt", "c.jsonl", "d.jsonl.zst", "e.txt.gz"):
        (texts / name).write_text("")

    names, ignored = listed(texts)
    files = list_files(SourceConfig(path=str(texts)), ())

    assert len(names) == 5 and ignored == {"empty": 4}
    assert [document.name for document in DocumentReader(files)] == ["a.txt"]


@pytest.mark.parametrize("path", ["a\0.txt", "*\0", "[", "a[", "\0", "/" * 5000 + "*.txt"])
def test_odd_path_is_refused_in_one_line(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigError, match=r"no such file or directory|no file with this pattern"):
        listed(path if path.startswith("/") else tmp_path / path)


def test_glob_lists_each_file_once(texts):
    (texts / "x" / "y").mkdir(parents=True)
    (texts / "x" / "y" / "b.txt").write_text("b")

    files = Listing.of_glob(f"{texts}/**/**/*.txt", ()).files

    assert sorted(files) == ["a.txt", "x/y/b.txt"]


def test_file_read_for_training_and_validation_is_reported(tmp_path):
    config = corpora.plain(tmp_path)
    (tmp_path / "link.txt").symlink_to(config.train[0])
    both = DataConfig(
        train=config.train, valid=(str(tmp_path / "link.txt"),), vocab_size=257, context=8
    )

    notes = prepare(both, 257, tmp_path / "data").describe()

    assert notes[0].startswith("warning: 1 file is read for both training and validation")
    assert not any("warning" in n for n in prepare(config, 257, tmp_path / "other").describe())


def test_hashing_stops_when_it_is_interrupted(texts, monkeypatch):
    files = list_files(SourceConfig(path=str(texts)), ())
    stream = LongStream()

    def interrupt(*_, **__):
        stream.is_reading.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "open_regular", lambda _: stream)
    monkeypatch.setattr(sources, "zip", interrupt, raising=False)
    with pytest.raises(KeyboardInterrupt):
        hash_files(files, {})
    assert stream.n_read < LongStream.n_blocks


class LongStream(io.BytesIO):
    """A file of 64 GB."""

    n_blocks = 1 << 16

    def __init__(self):
        super().__init__()
        self.n_read, self.is_reading = 0, threading.Event()

    def read(self, size=-1):
        self.is_reading.set()
        self.n_read += 1
        return bytes(size) if self.n_read < self.n_blocks else b""
