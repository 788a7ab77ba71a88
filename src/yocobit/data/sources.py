"""Source files: the files in paths, directories and globs of a corpus, in a fixed order.

A file is identified by its name, which does not depend on the location of the corpus, its size and
its SHA-256. documents.py reads its content.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import os
import sysconfig
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from yocobit.config import ConfigError
from yocobit.data.config import PYTHON_STDLIB, SourceConfig

_COMPRESSIONS = ("", ".gz", ".zst")
SUFFIXES = (
    *(f"{kind}{how}" for kind in (".txt", ".jsonl") for how in _COMPRESSIONS),
    *(".md", ".py", ".parquet"),
)

# In the standard library: installed packages, tests and generated tables.
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

_CHUNK_BYTES = 1 << 20
# A file modified this recently may change again without a new modification time.
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class SourceFile:
    """A file, and how to read its documents."""

    path: Path
    name: str
    size: int
    mtime_ns: int
    text_field: str = "text"
    by_line: bool = False
    is_named: bool = False  # by its path, not through a directory or a glob

    @property
    def suffix(self) -> str:
        """The entry of SUFFIXES that the name ends in."""
        suffix = _suffix(self.path.name)
        assert suffix is not None
        return suffix


def list_files(
    source: SourceConfig, exclude: Sequence[str], ignored: Counter[str] | None = None
) -> list[SourceFile]:
    """Return the files of a source sorted by name; ConfigError if there are none.

    `ignored` counts, by suffix, the files of a directory or a glob that end in none of SUFFIXES.
    """
    files = []
    ignored = Counter() if ignored is None else ignored
    for path, name in _paths(source.path, tuple(exclude), ignored):
        status = _stat(path)
        files.append(
            SourceFile(
                Path(path),
                name,
                status.st_size,
                status.st_mtime_ns,
                source.text_field,
                source.by_line,
                path == source.path,
            )
        )
    if source.by_line and not any(file.suffix.startswith(".txt") for file in files):
        raise ConfigError(f"{source.path}: by_line needs .txt files but there are none")
    return files


# Size, modification time and SHA-256 of files, by path.
FileHashes = dict[str, tuple[int, int, str]]


def hash_files(files: Sequence[SourceFile], cached: FileHashes) -> FileHashes:
    """Hash files; one whose size and modification time equal the cached ones is not read."""

    def sha256(file: SourceFile) -> str:
        size, mtime_ns, known = cached.get(str(file.path), (None, None, ""))
        return known if (size, mtime_ns) == (file.size, file.mtime_ns) else _sha256(file.path)

    with ThreadPoolExecutor() as pool:  # hashing and reading release the GIL
        digests = pool.map(sha256, files)
        return {
            str(file.path): (file.size, file.mtime_ns, digest)
            for file, digest in zip(files, digests, strict=True)
        }


def cacheable(hashes: FileHashes) -> FileHashes:
    """Return the hashes that identify a file by size and modification time from now on."""
    newest = time.time_ns() - _SETTLED_NS
    return {path: entry for path, entry in hashes.items() if entry[1] < newest}


def check_unchanged(files: Sequence[SourceFile]) -> None:
    """Raise ConfigError if a file has changed since it was listed."""
    for file in files:
        status = _stat(file.path)
        if (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
            raise ConfigError(f"{file.path}: has changed while it was read; run the command again")


def _stat(path: str | Path) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def _suffix(name: str) -> str | None:
    """Return the entry of SUFFIXES that a name ends in, ignoring case."""
    name = name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def describe_ignored(ignored: Mapping[str, int]) -> str:
    """Return a line about the files that list_files ignored."""
    kinds = ", ".join(f"{n:,} {suffix}" for suffix, n in sorted(ignored.items()))
    return f"ignored {sum(ignored.values()):,} files of other kinds: {kinds}"


def _paths(source: str, exclude: tuple[str, ...], ignored: Counter[str]) -> list[tuple[str, str]]:
    """Return path and name of each file of a source, sorted by name."""
    if source == PYTHON_STDLIB:
        listed = _directory(sysconfig.get_paths()["stdlib"], (*_STDLIB_EXCLUDE, *exclude))
        if not (found := [(path, name) for path, name in listed if name.endswith(".py")]):
            raise ConfigError(f"{source}: data.exclude must not match every file")
        return found
    if os.path.isdir(source):
        place, listed = "in this directory", _directory(source, exclude)
    elif os.path.exists(source):
        if _suffix(source) is None:
            raise ConfigError(f"{source}: must end in one of {', '.join(SUFFIXES)}")
        return [(source, os.path.basename(source))]
    elif glob.has_magic(source):
        place, listed = "with this pattern", _glob(source, exclude)
    else:
        raise ConfigError(f"{source}: no such file or directory")
    found, others = [], Counter[str]()
    for path, name in listed:
        if _suffix(name) is not None:
            found.append((path, name))
        elif not os.path.basename(name).startswith("."):
            others[PurePosixPath(name).suffix.lower() or "without a suffix"] += 1
    if not found:
        seen = f"; {describe_ignored(others)}" if others else ""
        raise ConfigError(f"{source}: no file {place} ends in {', '.join(SUFFIXES)}{seen}")
    ignored.update(others)
    return found


def _directory(directory: str, exclude: tuple[str, ...]) -> list[tuple[str, str]]:
    found = []
    for root, _, files in os.walk(directory):
        prefix = "" if root == directory else Path(root).relative_to(directory).as_posix() + "/"
        for file in files:
            if not _is_excluded(name := prefix + file, exclude):
                found.append((os.path.join(root, file), name))
    return sorted(found, key=lambda item: item[1])


def _glob(pattern: str, exclude: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return the files of a glob, named relative to the directory before its first wildcard."""
    found = []
    parts = Path(pattern).parts
    n_fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:n_fixed])
    for path in glob.iglob(pattern, recursive=True):
        name = Path(path).relative_to(root).as_posix()
        if not _is_excluded(name, exclude) and os.path.isfile(path):
            found.append((path, name))
    return sorted(found, key=lambda item: item[1])


def _is_excluded(name: str, exclude: tuple[str, ...]) -> bool:
    """Whether a pattern matches the whole name or, without a slash, any part of it."""
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude):
        return True
    return any(_is_part_excluded(part, exclude) for part in PurePosixPath(name).parts)


@lru_cache(maxsize=4096)
def _is_part_excluded(part: str, exclude: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(part, p) for p in exclude if "/" not in p)
