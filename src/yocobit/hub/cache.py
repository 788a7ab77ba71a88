"""The cache of converted models: packed models made from published checkpoints, by name.

It is XDG_CACHE_HOME/yocobit/models, by default ~/.cache/yocobit/models:

    names/NAME.json    the entry of a name: source, options, and the KEY of its packed model
    packed/KEY/MODEL/  a packed model; KEY is a hash of the source's hashes, options and versions

A conversion is complete or absent. Names with the same source and options share it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from yocobit import importers
from yocobit.disk import DISK_IS_FULL, replacing, sha256, user_directory
from yocobit.errors import ConfigError, UserError, shown
from yocobit.hub.choice import TEXT_FILES
from yocobit.packing.file_format import FORMAT_VERSION, canonical_json
from yocobit.packing.writer import Progress
from yocobit.reading import boundary, parse_json, read_bytes
from yocobit.system import lock

VERSION = f"{FORMAT_VERSION}.{importers.VERSION}"  # of conversions; those of others are outdated

# Paths are made of these fields of an entry, which may be damaged: they stay inside their folder.
_KEY = r"\A[0-9a-f]{32}\Z"
_MODEL = r"\A(?!\.{1,2}\Z)[^/\\]{1,255}\Z"
_RELATIVE = r"(?s)\A(?!/)(?!(.*/)?\.\.(/|\Z))"
_IS_UTF8 = "must have a name in UTF-8 to be cached; rename it"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a conversion, as of importers.import_model."""

    head: str | None = None  # None: the default of the model's weights
    weights: str | None = None
    tokenizer: str | None = None  # a directory


class SourceFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a source as it was when it was converted."""

    name: Annotated[str, Meta(pattern=_RELATIVE)]
    size: int  # bytes
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, folder: Path, name: str, digest: str | None = None) -> SourceFile:
        """Return the current state of a file; `digest` is its SHA-256, computed if None."""
        path = folder / name
        status = path.stat()  # before the hash: a later change is noticed
        return cls(
            name=name,
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            sha256=digest or sha256(path),
        )

    def is_unchanged(self, folder: Path) -> bool:
        """Whether the file still has this size and modification time."""
        status = (folder / self.name).stat()
        return (status.st_size, status.st_mtime_ns) == (self.size, self.mtime_ns)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A name, its source, and the packed model that was made from it."""

    name: str  # ORG/NAME[@REVISION][:FILE], or the absolute path of a GGUF file or directory
    key: Annotated[str, Meta(pattern=_KEY)]
    # The name of the packed model's directory, without organisation and folders.
    model: Annotated[str, Meta(pattern=_MODEL)]
    version: str
    source: str  # path of the file or directory that was converted
    revision: str | None  # the commit on the hub
    choice: str | None  # why these files, of those on the hub
    files: tuple[SourceFile, ...]
    options: Options


class ModelCache:
    """The cache in one directory."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_root()
        self._names, self._packed = self.root / "names", self.root / "packed"

    def find(self, name: str) -> Entry | None:
        """Return the entry of a name, or None without one or if its conversion is outdated."""
        entry = _read(self._file(name))
        if entry is None or entry.version != VERSION or not self.path(entry).is_dir():
            return None
        return entry

    def options(self, name: str) -> Options:
        """Return the options of the last conversion of a name, also of an outdated one."""
        entry = _read(self._file(name))
        return entry.options if entry else Options()

    def path(self, entry: Entry) -> Path:
        """Return the directory of the packed model."""
        return self._packed / entry.key / entry.model

    def entries(self) -> list[Entry]:
        """Return all entries by name, also outdated ones."""
        files = sorted(self._names.glob("*.json")) if self._names.is_dir() else []
        return sorted(filter(None, map(_read, files)), key=lambda entry: entry.name)

    def size_bytes(self, entry: Entry) -> int:
        """Return the size of the packed model on disk; 0 if it is missing."""
        path = self.path(entry)
        return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else 0

    def add(
        self,
        name: str,
        source: Path,
        files: tuple[SourceFile, ...],
        options: Options,
        *,
        revision: str | None = None,
        choice: str | None = None,
        say: Callable[[str], None] = lambda line: None,
        progress: Progress | None = None,
    ) -> Path:
        """Convert a source of these files, unless it is in the cache, and name the result.

        UserError on a full disk; ConfigError if a file changes during the conversion; otherwise the
        errors of the importers.
        """
        model = re.sub(r"\.gguf$", "", Path(re.split("[@:]", name)[0]).name)
        model = model if re.search(_MODEL, model) else "model"
        key = _key(files, options, model)
        entry = Entry(
            name=name,
            key=key,
            model=model,
            version=VERSION,
            source=str(source),
            revision=revision,
            choice=choice,
            files=files,
            options=options,
        )
        out = self.path(entry)
        with boundary(options.tokenizer or name, _IS_UTF8):
            content = msgspec.json.format(msgspec.json.encode(entry))
        try:
            self._packed.mkdir(parents=True, exist_ok=True)
            self._names.mkdir(parents=True, exist_ok=True)
            with _locked(self._packed / f".{key}.lock", say):
                if not out.is_dir():
                    say(f"{name}: converted once; this takes a minute for a large model")
                    self._convert(entry, say, progress)
                with replacing(self._file(name)) as partial:
                    partial.write_bytes(content)
        except OSError as error:
            raise _write_error(self.root, error) from None
        return out

    def remove(self, name: str) -> int:
        """Delete the entry of a name, and its packed model unless another name shares it.

        A path may be relative. Returns the number of bytes freed; ConfigError for an unknown name.
        """
        known = self.entries()
        names = (name, os.path.realpath(name) if os.path.lexists(name) else os.path.abspath(name))
        found = next((entry for entry in known if entry.name in names), None)
        if found is None:
            held = ", ".join(entry.name for entry in known) or "no models"
            raise ConfigError(f"{shown(name)}: is not in {self.root}, which has {held}")
        self._packed.mkdir(parents=True, exist_ok=True)
        with _locked(self._packed / f".{found.key}.lock", lambda line: None):
            # Under the lock: add() names another model of this key only while it holds the lock.
            self._file(found.name).unlink(missing_ok=True)
            is_shared = any(each.key == found.key for each in self.entries())
            freed = 0 if is_shared else self.size_bytes(found)
            if not is_shared and (path := self._packed / found.key).is_dir():
                # Renamed first: a partly deleted directory is never taken for a complete model.
                doomed = path.with_name(f".{found.key}.removed-{os.getpid()}")
                path.rename(doomed)
                shutil.rmtree(doomed)
        return freed

    def _convert(self, entry: Entry, say: Callable[[str], None], progress: Progress | None) -> None:
        for left in self._packed.glob(f".{entry.key}.*-*"):  # of processes that were killed
            shutil.rmtree(left, ignore_errors=True)
        source, options = Path(entry.source), entry.options
        partial = self._packed / f".{entry.key}.partial-{os.getpid()}"
        partial.mkdir()
        try:
            importers.import_model(
                source,
                partial / entry.model,
                options.head,
                weights=options.weights,
                tokenizer=Path(options.tokenizer) if options.tokenizer else None,
                report=say,
                progress=progress,
            )
            is_same_key = _key(entry.files, options, entry.model) == entry.key
            if not (is_same_key and all(f.is_unchanged(folder_of(source)) for f in entry.files)):
                raise ConfigError(
                    f"{entry.name}: must stay unchanged while it is converted but was edited; "
                    "try again"
                )
            partial.rename(self.path(entry).parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _file(self, name: str) -> Path:
        with boundary(name, _IS_UTF8):
            file = urllib.parse.quote(name, safe="")
        if len(file) > 200:  # of at most 255 in a directory
            file = file[-100:] + hashlib.sha256(name.encode()).hexdigest()[:32]
        return self._names / f"{file}.json"


def default_root() -> Path:
    """Return the directory of the user's cache."""
    return user_directory("XDG_CACHE_HOME", ".cache") / "yocobit" / "models"


def folder_of(source: Path) -> Path:
    """Return the directory with the files of a source: its own, or that of a GGUF file."""
    return source if source.is_dir() else source.parent


def _key(files: Iterable[SourceFile], options: Options, model: str) -> str:
    fields: dict[str, Any] = {
        "files": {file.name: file.sha256 for file in files},
        "model": model,
        "options": msgspec.to_builtins(options),
        "version": VERSION,
    }
    if options.tokenizer is not None:
        folder = Path(options.tokenizer)
        fields["tokenizer"] = {
            name: sha256(folder / name) for name in TEXT_FILES if (folder / name).is_file()
        }
    return hashlib.sha256(canonical_json(fields)).hexdigest()[:32]


def _read(path: Path) -> Entry | None:
    """Return an entry, or None if the file is missing, damaged, or of another version's shape."""
    try:
        return parse_json(read_bytes(path), str(path), Entry)
    except (OSError, UserError):
        return None


@contextmanager
def _locked(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock file, so that two processes do not convert the same model."""
    with path.open("ab") as stream:
        try:
            lock(stream.fileno(), wait=False)
        except BlockingIOError:
            say("waiting for another process that converts this model")
            lock(stream.fileno(), wait=True)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            say("this system has no file locks: do not convert a model in two processes at once")
        yield


def _write_error(root: Path, error: OSError) -> UserError:
    if error.errno in DISK_IS_FULL:
        return UserError(
            f"{root}: cannot be written ({os.strerror(error.errno or errno.ENOSPC)}); free disk "
            "space, or set XDG_CACHE_HOME to a directory of a larger disk"
        )
    return UserError(
        f"{root}: cannot be written ({error}); set XDG_CACHE_HOME to another directory"
    )
