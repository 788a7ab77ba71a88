"""Documents: the texts of files and directories, one after the other, each under a stable name.

A .txt, .md or .py file is one document, each line of a .jsonl file is one.
"""

from __future__ import annotations

import fnmatch
import json
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from yocobit.config import ConfigError
from yocobit.training.config import PYTHON_STDLIB

SUFFIXES = (".txt", ".md", ".py", ".jsonl")

# Of the standard library: what is not its own source, tests, and generated tables.
_STDLIB_EXCLUDE = (
    "site-packages",
    "dist-packages",
    "__pycache__",
    "test",
    "tests",
    "idle_test",
    "lib2to3",
    "encodings",
    "pydoc_data/topics.py",
    "config-*",
)


@dataclass(frozen=True)
class Document:
    """A text and a name that does not depend on where the corpus lies."""

    name: str
    text: str


@dataclass
class Documents:
    """The documents of some sources, in a fixed order; each iteration reads the files again."""

    sources: Sequence[str]
    exclude: Sequence[str] = ()
    skipped: set[str] = field(default_factory=set)  # .py files that are not UTF-8

    def __iter__(self) -> Iterator[Document]:
        for source in self.sources:
            for path, name in _files(source, self.exclude):
                yield from self._read(path, name)

    def _read(self, path: Path, name: str) -> Iterator[Document]:
        try:
            if path.suffix == ".jsonl":
                yield from _lines(path, name)
            elif text := path.read_bytes().decode("utf-8"):
                yield Document(name, text)
        except UnicodeDecodeError as error:
            if path.suffix == ".py":  # Python source may declare another encoding
                self.skipped.add(str(path))
                return
            byte = f"byte {error.object[error.start]:#04x} at {error.start}"
            raise ConfigError(f"{path}: is not UTF-8 ({byte})") from None
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def _lines(path: Path, name: str) -> Iterator[Document]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8"))
            except ValueError as error:  # not UTF-8, or not JSON
                raise ConfigError(f"{path}:{number}: is not valid JSON ({error})") from None
            value = record.get("text") if isinstance(record, dict) else None
            if not isinstance(value, str):
                raise ConfigError(f"{path}:{number}: must be an object with a string 'text'")
            if value:
                yield Document(f"{name}:{number}", value)


def _files(source: str, exclude: Sequence[str]) -> Iterable[tuple[Path, str]]:
    """Return the files of a source with their names, sorted by name."""
    if source == PYTHON_STDLIB:
        directory = Path(sysconfig.get_paths()["stdlib"])
        files = _directory(directory, (*_STDLIB_EXCLUDE, *exclude))
        return [(path, name) for path, name in files if path.suffix == ".py"]
    path = Path(source)
    if path.is_dir():
        return _directory(path, exclude)
    if not path.exists():
        raise ConfigError(f"{path}: no such file or directory")
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: must end in one of {', '.join(SUFFIXES)}")
    return [(path, path.name)]


def _directory(directory: Path, exclude: Sequence[str]) -> list[tuple[Path, str]]:
    found = []
    for path in directory.rglob("*"):
        name = path.relative_to(directory).as_posix()
        if path.suffix in SUFFIXES and not _is_excluded(name, exclude) and path.is_file():
            found.append((path, name))
    return sorted(found, key=lambda item: item[1])


def _is_excluded(name: str, exclude: Sequence[str]) -> bool:
    """Whether a pattern fits the whole name or, without a slash, any part of it."""
    parts = PurePosixPath(name).parts
    for pattern in exclude:
        if fnmatch.fnmatchcase(name, pattern):
            return True
        if "/" not in pattern and any(fnmatch.fnmatchcase(part, pattern) for part in parts):
            return True
    return False
