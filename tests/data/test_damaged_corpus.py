"""A prepared corpus whose files are damaged, replaced, or prepared by two processes at once."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import corpora
import pytest
from corpora import read

from yocobit.config import ConfigError
from yocobit.data.config import DataConfig
from yocobit.data.corpus import open_valid, prepare

SHARD, INDEX = "train-0-00000.bin", "index.json"


@pytest.fixture
def config(tmp_path) -> DataConfig:
    return corpora.plain(tmp_path)


@pytest.fixture
def directory(tmp_path) -> Path:
    return tmp_path / "data"


def changed(directory: Path, **fields) -> str:
    """The index with other fields, as an earlier version wrote it: without its hash."""
    return json.dumps({**json.loads((directory / INDEX).read_text()), "sha256": None, **fields})


def changed_shard(directory: Path, **fields) -> str:
    (train,) = json.loads((directory / INDEX).read_text())["train"]
    train["shards"][0].update(fields)
    return changed(directory, train=[train])


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: "",
        lambda _: "{",
        lambda _: "[]",
        lambda _: "[" * 100_000,
        lambda _: "\udcff",
        lambda d: changed(d, known=5),
        lambda d: changed(d, known={"a": [1]}),
        lambda d: changed(d, train=[]),
        lambda d: changed(d, train=[{}]),
        lambda d: changed(d, valid=None),
        lambda d: changed(d, tokenizer_bytes="x"),
        lambda d: changed(d, n_skipped=-1),
        lambda d: changed_shard(d, name="../../train-0-00000"),
        lambda d: changed_shard(d, tokens=10**30),
        lambda d: changed_shard(d, tokens=-1),
        lambda d: changed_shard(d, has_mask=1),
        lambda d: changed_shard(d, sha256={"/../../../../../../../../../dev/zero": ""}),
    ],
)
def test_corpus_with_a_damaged_index_is_prepared_again_with_a_warning(config, directory, damage):
    whole = read(prepare(config, 270, directory).train[0])
    (directory / INDEX).write_text(damage(directory), errors="surrogateescape")

    corpus = prepare(config, 270, directory)

    assert read(corpus.train[0]) == whole
    assert corpus.describe()[0].startswith(f"warning: {directory / INDEX}: ")
    assert prepare(config, 270, directory).notes == ()


def test_corpus_whose_index_has_another_number_is_prepared_again(config, directory):
    prepare(config, 270, directory)
    whole = (directory / INDEX).read_text()
    n_bytes = json.loads(whole)["valid"]["bytes"]
    (directory / INDEX).write_text(whole.replace(f'"bytes": {n_bytes}', '"bytes": 0'))

    corpus = prepare(config, 270, directory)

    assert corpus.valid.n_bytes == n_bytes
    assert corpus.notes == (
        f"warning: {directory / INDEX}: is damaged: its SHA-256 differs from that in it; the "
        "corpus is prepared again",
    )


def test_tokenizer_of_equal_size_that_is_damaged_is_refused(config, directory):
    prepare(config, 270, directory)
    path = directory / "tokenizer.json"
    whole = path.read_text()
    path.write_text(whole.replace('"!":1,', '"!":2,', 1))

    with pytest.raises(ConfigError, match=r"tokenizer\.json: is damaged: its SHA-256 differs"):
        prepare(config, 270, directory)


@pytest.mark.parametrize("name", ["index.json", "tokenizer.json", SHARD])
@pytest.mark.parametrize("kind", ["fifo", "loop", "directory"])
def test_corpus_with_a_special_file_does_not_hang(config, directory, name, kind):
    whole = read(prepare(config, 270, directory).train[0])
    path = directory / name
    path.unlink()
    {
        "fifo": lambda: os.mkfifo(path),
        "loop": lambda: path.symlink_to(path),
        "directory": path.mkdir,
    }[kind]()

    try:
        assert read(prepare(config, 270, directory).train[0]) == whole
    except (ConfigError, OSError) as error:
        assert str(path) in str(error)


def test_field_of_a_newer_index_is_ignored(config, directory):
    prepare(config, 270, directory)
    made = (directory / SHARD).stat().st_mtime_ns
    (directory / INDEX).write_text(changed(directory, of_a_newer_version=[1]))

    prepare(config, 270, directory)

    assert (directory / SHARD).stat().st_mtime_ns == made


@pytest.mark.parametrize(
    ("version", "tokenizer", "is_kept"),
    [(2, "", False), (3, "", True), (5, "BPE 270 1 ", True), (5, "BPE 270 0 ", False)],
)
def test_shards_of_the_version_before_are_kept(config, directory, version, tokenizer, is_kept):
    """A run that they belong to resumes with its own tokens: `sha256` is the same."""
    prepare(config, 270, directory)
    inputs = json.loads((directory / INDEX).read_text())["inputs"]
    former = {**inputs, "version": version}
    if tokenizer:
        former["tokenizer"] = inputs["tokenizer"].replace("BPE 270 2 ", tokenizer)
    assert former != inputs
    (directory / INDEX).write_text(changed(directory, inputs=former))

    first = prepare(config, 270, directory).sha256

    inputs = json.loads((directory / INDEX).read_text())["inputs"]
    assert (inputs == former) == is_kept
    assert prepare(config, 270, directory).sha256 == first


@pytest.mark.parametrize("how", ["truncated", "overwritten", "replaced", "removed"])
def test_shard_that_changes_while_it_is_open_is_refused_by_name(config, directory, how):
    corpus = prepare(config, 270, directory)
    path = directory / SHARD
    size = path.stat().st_size
    if how == "removed":
        path.unlink()
    elif how == "truncated":
        os.truncate(path, 0)
    elif how == "overwritten":
        path.write_bytes(bytes(size))
        os.utime(path, (1, 1))
    else:
        (directory / "other").write_bytes(path.read_bytes())
        (directory / "other").rename(path)

    with pytest.raises(ConfigError, match=rf"{SHARD}: has changed since it was opened"):
        corpus.windows(seed=0, first=0, size=1, context=8)


def test_token_outside_the_vocabulary_is_refused_by_shard(config, directory):
    prepare(config, 270, directory)
    path = directory / SHARD
    path.write_bytes(b"\xff" * path.stat().st_size)
    corpus = prepare(config, 270, directory, verify=False)

    with pytest.raises(ConfigError, match=rf"{SHARD}: has token 65535 but .* 270 tokens; delete"):
        corpus.windows(seed=0, first=0, size=1, context=8)


def test_validation_text_of_a_damaged_corpus_is_refused(config, directory):
    prepare(config, 270, directory)
    (directory / "valid-00000.bin").write_bytes(b"\0")
    with pytest.raises(ConfigError, match=r"valid-00000\.bin: must have .* bytes but has 1"):
        open_valid(directory)

    (directory / INDEX).unlink()
    with pytest.raises(ConfigError, match=r"index\.json: no such file"):
        open_valid(directory)


def test_only_shards_are_removed_before_a_preparation(config, directory):
    directory.mkdir()
    kept = ["model.bin", "train.bin", "train-0.mask", "valid-1.bin.txt", "train-x-00000.bin"]
    for name in (*kept, "train-7-00000.bin", "valid-00001.mask"):
        (directory / name).write_bytes(b"x")

    prepare(config, 270, directory)

    names = {path.name for path in directory.iterdir()}
    assert names == {*kept, "train-0-00000.bin", "valid-00000.bin", "index.json", "tokenizer.json"}


PREPARE = """
import os, signal, sys
from pathlib import Path
from yocobit.data import corpus, shards
from yocobit.data.config import DataConfig

def kill_at_call(owner, name, n):
    function, calls = getattr(owner, name), []
    def counted(*arguments, **options):
        calls.append(1)
        if len(calls) == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    setattr(owner, name, counted)

train, valid, directory, owner, name, n = sys.argv[1:]
shards.SHARD_BYTES = 100
if name:
    kill_at_call({"os": os, "writer": shards.ShardWriter, "corpus": corpus}[owner], name, int(n))
config = DataConfig(train=(train,), valid=(valid,), vocab_size=270, context=8)
print(corpus.prepare(config, 270, Path(directory)).sha256)
"""


def start(config: DataConfig, directory: Path, *killed: str) -> subprocess.Popen:
    arguments = [config.train[0], config.valid[0], str(directory), *(killed or ("", "", "0"))]
    command = [sys.executable, "-c", PREPARE, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    "killed",
    [
        ("os", "replace", "1"),  # before the tokenizer has its name
        ("writer", "_write", "1"),
        ("writer", "_close_shard", "4"),
        ("corpus", "check_unchanged", "1"),  # all shards, no index
        ("os", "replace", "2"),  # before the index has its name
    ],
)
def test_corpus_of_a_process_killed_while_it_prepared_is_not_reused(config, directory, killed):
    whole = prepare(config, 270, directory.with_name("whole"))
    process = start(config, directory, *killed)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (directory / INDEX).exists()

    corpus = prepare(config, 270, directory)

    assert read(corpus.train[0]) == read(whole.train[0])
    assert corpus.sha256 == whole.sha256


def test_processes_that_prepare_one_directory_at_once_get_the_same_corpus(config, directory):
    whole = prepare(config, 270, directory.with_name("whole"))

    processes = [start(config, directory) for _ in range(3)]
    printed = {process.communicate()[0].strip() for process in processes}

    assert [process.returncode for process in processes] == [0, 0, 0]
    assert printed == {whole.sha256}
    assert read(prepare(config, 270, directory).train[0]) == read(whole.train[0])
