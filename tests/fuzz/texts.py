"""Text files, directories, settings and prepared corpora: what users name in [data].

`run(seconds, seed)` mutates valid files of each kind and reads them in this process. Each case must
succeed or raise one of the package's errors with one short line, within seconds, and with less than
1 GB of memory. Case I is a function of the seed and I alone; to run it again and keep its files:

    python tests/fuzz/texts.py SEED I
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from yocobit.data.config import DataConfig, SourceConfig
from yocobit.data.corpus import open_valid, prepare
from yocobit.data.documents import DocumentReader
from yocobit.data.sources import describe_ignored, list_files
from yocobit.errors import UserError
from yocobit.training.config import load

MEMORY_BYTES = 1 << 30
CASE_SECONDS = 20
MAX_LINE = 700  # characters of an error, without the directory of the case

CONVERSATION = [
    {"role": "system", "content": "short"},
    {"role": "user", "content": "why?"},
    {"role": "assistant", "content": "so!"},
]
RECORDS = [{"text": "naïve ☕ text", "id": 7}, {"messages": CONVERSATION}, {"text": "b " * 50}]
TEXT = "A line of text, naïve ☕\r\n\tand another\n\n" * 9
ODD_BYTES = [
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\xff\xfe\0\0", b"\0", b"\xff", b"\xe2\x82"),
    *(b"\r", b"\n", b"\x1b[2J", b'"', b"\\", b"{", b"[" * 5000, b"]", b"}", b":", b","),
    *(b"NaN", b"1e999", b"-1", b"9" * 5000, b"null", b"true", b'"\\ud800"', b"\\u0000", b"''"),
    *(b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"PAR1", b"PARE", bytes(64), b"\xff" * 8),
]
ODD_VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 2, 1 << 31, 1 << 63, 1 << 64, 10**30, -(10**30), 0.5, 1e308, 5e-324),
    *(
        float("inf"),
        float("nan"),
        "",
        "x",
        "\0",
        "\ud800",
        "../x",
        "/",
        "/dev/zero",
        "~",
        "~nobody",
    ),
    *("*", "**", "[", "***/**/*", "x" * 5000, "text", "messages", "\x1b[2J\n"),
    *([], [[]], {}, [None], [1], {"path": "x"}, [{"path": "a.txt", "weight": 1e308}], [[]] * 5000),
]


def run(seconds: float, seed: int) -> int:
    """Run cases for some seconds; print those that fail and return their number."""
    end, number, failures = time.monotonic() + seconds, 0, Counter[str]()
    while time.monotonic() < end:
        with tempfile.TemporaryDirectory(prefix="yocobit-fuzz-") as directory:
            problem = run_case(Path(directory), seed, number)
        if problem is not None:
            failures[problem] += 1
            if failures[problem] == 1:
                print(f"FAILED texts: {problem}")
                print(f"    python tests/fuzz/texts.py {seed} {number}", flush=True)
        number += 1
    print(f"texts: {number} cases, {failures.total()} failures", flush=True)
    return failures.total()


def run_case(directory: Path, seed: int, number: int) -> str | None:
    """Run one case with its files in a directory; return what is wrong, or None."""
    r = random.Random(f"{seed}/{number}")
    kind = r.choice([_file, _file, _file, _directory, _settings, _corpus])
    try:
        with _limited():
            kind(r, directory)
    except (UserError, OSError) as error:
        line = str(error).replace(str(directory), "")
        if not isinstance(error, UserError) and not error.strerror:
            return f"{kind.__name__}: {error!r}"
        return (
            f"{kind.__name__}: a line of {len(line)} characters" if len(line) > MAX_LINE else None
        )
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also panics of Rust
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{kind.__name__}: {error!r:.300} at {place.filename}:{place.lineno}"
    return None


class Hang(BaseException):
    """A case that is not done in time."""


# ---- kinds of cases ----


def _file(r: random.Random, directory: Path) -> None:
    """Read a mutated file of one kind, by its name or through its directory."""
    name = r.choice([*FILES])
    content = mutated(r, FILES[name]()) if r.random() < 0.7 else FILES[name]()
    for suffix, compress in COMPRESSIONS.items():
        if name.endswith(suffix):
            content = compress(content)
            content = mutated(r, content) if r.random() < 0.5 else content
    path = directory / name
    path.write_bytes(content)
    fields = {"text_field": r.choice(["text", "text", "id", "messages", "", "\0"])}
    source = SourceConfig(
        path=str(r.choice([path, path, directory, directory / "**"])),
        by_line=name.startswith("a.txt") and r.random() < 0.5,
        **fields,
    )
    _read(source)


def _directory(r: random.Random, directory: Path) -> None:
    """Read a directory of odd entries, as it is or by an odd pattern."""
    top = directory / "1/2/3/4/5"  # ".." stays inside the directory of the case
    top.mkdir(parents=True)
    places = [top]
    with contextlib.ExitStack() as sockets:
        for _ in range(r.randrange(12)):
            place = r.choice(places)
            with contextlib.suppress(OSError):
                _entry(r, place, places, sockets)
        parts = ["**", "*", "*.txt", "?*", "[", "[a-z]*", "..", ".*", "a.txt", "{a,b}", "d"]
        pattern = "/".join(r.choice(parts) for _ in range(r.randrange(5)))
        exclude = tuple(r.choice([*parts, "*/x", "", "!"]) for _ in range(r.randrange(3)))
        _read(SourceConfig(path=f"{top}/{pattern}"), exclude)


def _settings(r: random.Random, directory: Path) -> None:
    """Load a TOML file with odd settings in [data], and prepare the corpus that it describes."""
    (directory / "a.txt").write_text(TEXT)
    data = {"train": ["a.txt"], "valid_every": 2, "vocab_size": 300, "context": 8}
    others = {"valid": ["a.txt"], "exclude": ["b"], "deduplicate": True, "tokenizer": "t.json"}
    data |= {name: value for name, value in others.items() if r.random() < 0.2}
    for _ in range(r.randrange(3)):
        name = r.choice([*data, *others, "path", "x\n"])
        data[name] = r.choice(ODD_VALUES)
    items = "\n".join(f"{json.dumps(name)} = {_toml(value)}" for name, value in data.items())
    text = f'[model]\npreset = "nano"\n[run]\nsteps = 1\n[data]\n{items}\n'.encode(
        "utf-8", "surrogatepass"
    )
    (directory / "run.toml").write_bytes(mutated(r, text) if r.random() < 0.3 else text)
    config = load(directory / "run.toml")
    _bounded(config.data, config.model.vocab_size, directory / "data")


def _corpus(r: random.Random, directory: Path) -> None:
    """Open a prepared corpus with a mutated file, and read it."""
    shutil.copytree(_prepared(), directory / "copy")
    data = directory / "copy" / "data"
    path = r.choice(sorted(data.iterdir()))
    if path.name == "index.json" and r.random() < 0.7:
        index = json.loads(path.read_text())
        place: Any = index
        while isinstance(place, dict | list) and place and r.random() < 0.8:
            key = r.choice([*place]) if isinstance(place, dict) else r.randrange(len(place))
            parent, place = place, place[key]
            if not isinstance(place, dict | list) or r.random() < 0.3:
                parent[key] = r.choice(ODD_VALUES)
                break
        path.write_text(json.dumps(index))
    elif r.random() < 0.1:
        path.unlink()
        r.choice([path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to(path)])()
    else:
        path.write_bytes(mutated(r, path.read_bytes()))
    texts = directory / "copy"
    config = DataConfig(
        train=(str(texts / "a.jsonl"),), valid=(str(texts / "a.txt"),), vocab_size=270, context=8
    )
    if r.random() < 0.3:
        _, valid = open_valid(data)
        valid.read(0, len(valid))
    else:
        _bounded(config, 270, data)


# ---- parts ----


def mutated(r: random.Random, data: bytes) -> bytes:
    """Return bytes with a few changes."""
    content = bytearray(data)
    for _ in range(r.choice([1, 1, 2, 5, 50])):
        start = r.randrange(len(content) + 1)
        end = min(len(content), start + r.choice([0, 1, 1, 4, 100]))
        how = r.randrange(6)
        if how == 0 and content:
            content[min(start, len(content) - 1)] ^= 1 << r.randrange(8)
        elif how == 1:
            content[start:end] = r.choice(ODD_BYTES)
        elif how == 2:
            content[start:end] = r.randbytes(end - start)
        elif how == 3:
            content[start:start] = content[start:end] * r.choice([1, 2, 100])
        elif how == 4:
            del content[start:end]
        elif r.random() < 0.2:
            del content[start:]
    return bytes(content)


def _jsonl() -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS)


def _parquet(records: list[dict[str, Any]], **options: Any) -> Callable[[], bytes]:
    def write() -> bytes:
        import pyarrow
        from pyarrow import parquet

        stream = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(records), stream, **options)
        return stream.getvalue()

    return write


def _zstd(data: bytes) -> bytes:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return bytes(zstd.compress(data))


COMPRESSIONS = {".gz": gzip.compress, ".zst": _zstd}
FILES: dict[str, Callable[[], bytes]] = {
    **{f"a.txt{suffix}": TEXT.encode for suffix in ("", ".gz", ".zst")},
    **{f"a.jsonl{suffix}": _jsonl for suffix in ("", ".gz", ".zst")},
    "a.md": TEXT.encode,
    "a.py": TEXT.encode,
    "a.parquet": _parquet([{"text": f"row {i}", "id": i} for i in range(40)], row_group_size=20),
    "b.parquet": _parquet([{"messages": CONVERSATION}] * 9, compression="gzip"),
    "c.parquet": _parquet([{"text": f"row {i}"} for i in range(9)], compression="zstd"),
    "d.parquet": _parquet([{"text": f"row {i}"} for i in range(9)], use_dictionary=False),
}


def _entry(
    r: random.Random, place: Path, places: list[Path], sockets: contextlib.ExitStack
) -> None:
    name = r.choice(
        ["a.txt", "b.md", ".c.txt", "d", ".git", "e\n\x1b.txt", "f.", "g.jsonl", "data"]
    )
    path = Path(os.fsdecode(os.fsencode(place / name) + r.choice([b"", b"\xff.txt"])))
    how = r.randrange(7)
    if how == 0:
        path.mkdir()
        places.append(path)
    elif how == 1:
        path.symlink_to(r.choice([".", "..", "absent", path.name, "/dev/zero", "/dev/null", place]))
    elif how == 2:
        os.mkfifo(path)
    elif how == 3:
        sockets.enter_context(socket.socket(socket.AF_UNIX)).bind(str(path))
    else:
        with path.open("x") as file:
            file.write(r.choice(["", TEXT, "\ufeff", "{}"]))


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


def _read(source: SourceConfig, exclude: tuple[str, ...] = ()) -> None:
    ignored = Counter[str]()
    reader = DocumentReader(list_files(source, exclude, ignored))
    for document in reader:
        document.digest()
        document.name.encode()
    assert not ignored or describe_ignored(ignored).isprintable()


def _bounded(config: DataConfig, vocab_size: int, directory: Path) -> None:
    """Prepare a corpus of the files of the case, and read some of it."""
    paths = [item.path if isinstance(item, SourceConfig) else item for item in config.train]
    paths += [item.path if isinstance(item, SourceConfig) else item for item in config.valid]
    if any(not Path(path).is_relative_to(directory.parent) for path in paths):
        return  # such as "/": all files of the machine
    corpus = prepare(config, vocab_size, directory)
    corpus.windows(seed=0, first=0, size=3, context=config.context)
    corpus.valid.read(0, len(corpus.valid))
    assert all(line.isprintable() for line in corpus.describe())


_PREPARED: list[Path] = []


def _prepared() -> Path:
    """Return a directory with a corpus and its texts; prepared once."""
    if not _PREPARED:
        directory = Path(tempfile.mkdtemp(prefix="yocobit-fuzz-"))
        (directory / "a.txt").write_text(TEXT)
        (directory / "a.jsonl").write_bytes(_jsonl() * 20)
        train, valid = (str(directory / name) for name in ("a.jsonl", "a.txt"))
        config = DataConfig(train=(train,), valid=(valid,), vocab_size=270, context=8)
        prepare(config, 270, directory / "data")
        _PREPARED.append(directory)
    return _PREPARED[0]


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Raise MemoryError beyond MEMORY_BYTES more than now, Hang after CASE_SECONDS."""
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)

    def expire(*_: Any) -> None:
        raise Hang(f"not done after {CASE_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, expire)
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, limits[1]))
    signal.alarm(CASE_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


if __name__ == "__main__":
    kept = Path(tempfile.mkdtemp(prefix="yocobit-fuzz-"))
    print(kept)
    print(run_case(kept, int(sys.argv[1]), int(sys.argv[2])) or "ok")
