"""The prefix cache on disk: it outlives the server, also one that is killed.

One file an entry, under its key; written by a thread of its own, whole or not at all, and checked
against its hash when it is read. Keys know the model, so several may share a directory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import queue
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yocobit.config import ConfigError

_SUFFIX, _PARTIAL = ".prefix", ".partial-"
_HASH = 32  # bytes of a hash before an entry's own

Bytes = NDArray[np.uint8]

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where in texts a state is kept: so many tokens after a block, which is told by its key."""

    block: bytes
    tail: int


@dataclasses.dataclass(frozen=True)
class _File:
    name: str
    size: int  # bytes


class PrefixStore:
    """Entries in a directory, up to a number of bytes; what was not used for longest goes first."""

    def __init__(self, directory: Path, capacity: int) -> None:
        """Open a directory, which is made if it is absent. ConfigError if that cannot be."""
        self._directory = directory
        self._capacity = capacity
        self._files: OrderedDict[bytes, _File] = OrderedDict()
        self._places: dict[bytes, Place] = {}
        self._size = 0
        self._waiting: dict[bytes, Bytes] = {}  # to be written
        self._lock = threading.Lock()  # of the three above; held for moments
        self._queue: queue.SimpleQueue[tuple[bytes, Place | None] | None] = queue.SimpleQueue()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._scan()
        except OSError as error:
            raise ConfigError(
                f"{directory}: cannot hold the prefix cache ({error.strerror}); choose another"
            ) from None
        self._writer = threading.Thread(target=self._write_all, name="prefix-store", daemon=True)
        self._writer.start()

    def __contains__(self, key: bytes) -> bool:
        return key in self._files or key in self._waiting

    def places(self) -> dict[bytes, Place]:
        """Return the places of the states that are here, by key."""
        return dict(self._places)

    def read(self, key: bytes) -> Bytes | None:
        """Return an entry; None if there is none, or none that is whole."""
        with self._lock:
            if (entry := self._waiting.get(key)) is not None:
                return entry
            if (file := self._files.get(key)) is None:
                return None
            self._files.move_to_end(key)
        path = self._directory / file.name
        try:
            raw = path.read_bytes()
            os.utime(path)
        except OSError:
            raw = b""
        if raw[:_HASH] != _hash(raw[_HASH:]):
            self._drop(key)
            return None
        return np.frombuffer(raw, dtype=np.uint8, offset=_HASH)

    def write(self, key: bytes, entry: Bytes, place: Place | None) -> None:
        """Write an entry soon; a state comes with its place."""
        with self._lock:
            self._waiting[key] = entry
        self._queue.put((key, place))

    def close(self) -> None:
        """Write what waits, and end."""
        self._queue.put(None)
        self._writer.join()

    def _scan(self) -> None:
        found = []
        for file in os.scandir(self._directory):
            if f"{_SUFFIX}{_PARTIAL}" in file.name and not _is_alive(file.name.split(_PARTIAL)[1]):
                os.unlink(file)  # of a server that was killed
            elif file.name.endswith(_SUFFIX) and (named := _parse(file.name)) is not None:
                status = file.stat()
                found.append((status.st_mtime_ns, file.name, status.st_size, *named))
        for _, name, size, key, place in sorted(found, key=lambda each: each[:2]):
            self._add(key, _File(name, size), place)
        self._shrink()

    def _write_all(self) -> None:
        while (item := self._queue.get()) is not None:
            key, place = item
            entry = self._waiting[key]
            try:
                file = self._write(key, entry.tobytes(), place)
            except OSError as error:
                logger.warning("%s: prefix not kept (%s)", self._directory, error.strerror)
                file = None
            with self._lock:
                if file is not None:
                    self._add(key, file, place)
                del self._waiting[key]
            self._shrink()

    def _write(self, key: bytes, data: bytes, place: Place | None) -> _File:
        name = key.hex() + ("" if place is None else f"-{place.block.hex()}-{place.tail}") + _SUFFIX
        partial = self._directory / f".{name}{_PARTIAL}{os.getpid()}"
        try:
            with partial.open("wb") as stream:
                stream.write(_hash(data) + data)
                stream.flush()
                os.fsync(stream.fileno())
            partial.rename(self._directory / name)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        return _File(name, _HASH + len(data))

    def _add(self, key: bytes, file: _File, place: Place | None) -> None:
        self._files[key] = file
        self._size += file.size
        if place is not None:
            self._places[key] = place

    def _shrink(self) -> None:
        while self._size > self._capacity and self._files:
            self._drop(next(iter(self._files)))

    def _drop(self, key: bytes) -> None:
        with self._lock:
            if (file := self._files.pop(key, None)) is None:
                return
            self._size -= file.size
            self._places.pop(key, None)
        with contextlib.suppress(OSError):
            (self._directory / file.name).unlink()


def _parse(name: str) -> tuple[bytes, Place | None] | None:
    """Return the key and place in the name of a file; None if it is another's."""
    key, *place = name[: -len(_SUFFIX)].split("-")
    try:
        if not place:
            return bytes.fromhex(key), None
        block, tail = place
        return bytes.fromhex(key), Place(bytes.fromhex(block), int(tail))
    except ValueError:
        return None


def _is_alive(process: str) -> bool:
    return process.isdigit() and Path("/proc", process).exists()


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_HASH).digest()
