"""Source files: the files in paths, directories and globs of a corpus, in a fixed order.

A file is identified by its name, which does not depend on the location of the corpus, its size and
its SHA-256. paths.py finds the files; documents.py reads their content.
"""

from __future__ import annotations

import codecs
import glob
import hashlib
import os
import stat
import sysconfig
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from yocobit.config import ConfigError
from yocobit.data.config import PYTHON_STDLIB, SourceConfig
from yocobit.data.paths import Listing, kind_of
from yocobit.errors import printable
from yocobit.hardware.host import default_threads
from yocobit.reading import open_regular

_COMPRESSIONS = ("", ".gz", ".zst")
SUFFIXES = (
    *(f"{kind}{how}" for kind in (".txt", ".jsonl") for how in _COMPRESSIONS),
    *(".md", ".py", ".parquet"),
)
_NAMED_SUFFIXES = (".json",)  # read only if named by path; most such files are not text

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
_MAX_KINDS = 10  # in a line about ignored files
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
    inode: tuple[int, int] = (0, 0)  # with its device

    @property
    def key(self) -> str:
        """The path as JSON can represent it, as a name may not be UTF-8."""
        return os.fsencode(self.path).decode("utf-8", "backslashreplace")

    @property
    def suffix(self) -> str:
        """The entry of SUFFIXES, or ".json", that the name ends in."""
        suffix = _suffix(self.path.name, self.is_named)
        assert suffix is not None
        return suffix


def list_files(
    source: SourceConfig, exclude: Sequence[str], ignored: Counter[str] | None = None
) -> list[SourceFile]:
    """Return the files of a source sorted by name; ConfigError if there are none.

    `ignored` counts, by suffix or kind, the files of a directory or a glob that are left out.
    """
    files = []
    ignored = Counter() if ignored is None else ignored
    for path, name in _paths(source.path, tuple(exclude), ignored):
        status = _stat(path)
        if not stat.S_ISREG(status.st_mode):
            kind = kind_of(status.st_mode)
            raise ConfigError(f"{path}: must be a regular file but is a {kind}")
        if status.st_size == 0 and path != source.path:
            ignored["empty"] += 1
        files.append(
            SourceFile(
                Path(path),
                os.fsencode(name).decode("utf-8", "backslashreplace"),
                status.st_size,
                status.st_mtime_ns,
                source.text_field,
                source.by_line,
                path == source.path,
                (status.st_dev, status.st_ino),
            )
        )
    if source.by_line and not any(file.suffix.startswith(".txt") for file in files):
        raise ConfigError(f"{source.path}: by_line needs .txt files but there are none")
    return files


# Size, modification time and SHA-256 of files, by path.
FileHashes = dict[str, tuple[int, int, str]]


def hash_files(files: Sequence[SourceFile], cached: FileHashes) -> FileHashes:
    """Hash files; one whose size and modification time equal the cached ones is not read."""
    is_stopped = threading.Event()

    def sha256(file: SourceFile) -> str:
        size, mtime_ns, known = cached.get(file.key, (None, None, ""))
        if (size, mtime_ns) == (file.size, file.mtime_ns):
            return known
        return _sha256(file.path, is_stopped)

    # Hashing and reading release the GIL.
    with ThreadPoolExecutor(max_workers=default_threads()) as pool:
        try:
            digests = pool.map(sha256, files)
            return {
                file.key: (file.size, file.mtime_ns, digest)
                for file, digest in zip(files, digests, strict=True)
            }
        except BaseException:  # such as Ctrl-C: the pool waits for its threads
            is_stopped.set()
            raise


def cacheable(hashes: FileHashes) -> FileHashes:
    """Return the hashes of files that have not changed recently.

    Size and modification time identify only these from now on.
    """
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


def _sha256(path: Path, is_stopped: threading.Event) -> str:
    """Hash a file without its byte order mark, which is not text."""
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            chunk = file.read(_CHUNK_BYTES).removeprefix(codecs.BOM_UTF8)
            while chunk and not is_stopped.is_set():
                digest.update(chunk)
                chunk = file.read(_CHUNK_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def _suffix(name: str, is_named: bool = False) -> str | None:
    """Return the suffix of a kind of file that is read, ignoring case; None for other files."""
    name = name.lower()
    suffixes = (*SUFFIXES, *_NAMED_SUFFIXES) if is_named else SUFFIXES
    return next((suffix for suffix in suffixes if name.endswith(suffix)), None)


def describe_ignored(ignored: Mapping[str, int]) -> str:
    """Return a line about the files that list_files ignored."""
    counts = sorted((-n, kind) for kind, n in ignored.items())
    listed = [f"{-n:,} {kind}" for n, kind in counts[:_MAX_KINDS]]
    if others := -sum(n for n, _ in counts[_MAX_KINDS:]):
        listed.append(f"{others:,} others")
    return f"ignored {sum(ignored.values()):,} files of other kinds: {', '.join(listed)}"


def _paths(source: str, exclude: tuple[str, ...], ignored: Counter[str]) -> list[tuple[str, str]]:
    """Return path and name of each file of a source, sorted by name."""
    if source == PYTHON_STDLIB:
        stdlib = sysconfig.get_paths()["stdlib"]
        listed = Listing.of_directory(stdlib, (*_STDLIB_EXCLUDE, *exclude)).files
        if not (files := [name for name in listed if name.endswith(".py")]):
            raise ConfigError(f"{source}: data.exclude must not match every file")
        return [(listed[name], name) for name in sorted(files)]
    if os.path.isdir(source):
        place, listing = "in this directory", Listing.of_directory(source, exclude)
    elif os.path.exists(source):
        if _suffix(source, is_named=True) is None:
            known = ", ".join((*SUFFIXES, *_NAMED_SUFFIXES))
            raise ConfigError(f"{source}: must end in one of {known}")
        return [(source, os.path.basename(source))]
    elif "\0" not in source and glob.has_magic(source):
        place, listing = "with this pattern", Listing.of_glob(source, exclude)
    else:
        raise ConfigError(f"{source}: no such file or directory")
    found, others = [], Counter(listing.ignored.values())
    for name, path in sorted(listing.files.items()):
        if _suffix(name) is not None:
            found.append((path, name))
        elif not os.path.basename(name).startswith("."):
            others[_kind_by_suffix(name)] += 1
    if n_hidden := sum(_suffix(name) is not None for name in listing.hidden):
        others["hidden"] += n_hidden
    if not found:
        seen = f"; {describe_ignored(others)}" if others else ""
        raise ConfigError(f"{source}: no file {place} ends in {', '.join(SUFFIXES)}{seen}")
    ignored.update(others)
    return found


def _kind_by_suffix(name: str) -> str:
    return printable(PurePosixPath(name).suffix.lower(), 20) or "without a suffix"
