"""The prefix cache on disk: it outlives the server, also one that is killed.

One file an entry, under its key; written by a thread of its own and checked against its hash when
it is read. So nothing waits for the disk: what a power failure leaves torn is a miss. Keys know the
model, so several may share a directory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import queue
import re
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yocobit.config import ConfigError

_SUFFIX, _PARTIAL = ".prefix", ".partial-"
_HASH = 32  # bytes of a hash before an entry's own
# The key of a block, or that of a state with its place.
_NAME = re.compile(rf"([0-9a-f]{{64}})(?:-([0-9a-f]{{64}})-([0-9]{{1,4}}))?{re.escape(_SUFFIX)}")
_MOST_WAITING = 256 << 20  # bytes of entries that the disk is behind

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
    """Entries in a directory, up to a number of bytes; what was not used for longest goes first.

    One thread reads and writes.
    """

    def __init__(self, directory: Path, capacity: int) -> None:
        """Open a directory, which is made if it is absent. ConfigError if that cannot be."""
        self._directory = directory
        self._capacity = capacity
        self._files: OrderedDict[bytes, _File] = OrderedDict()
        self._places: dict[bytes, Place] = {}
        self._size = 0
        self._waiting: dict[bytes, Bytes] = {}  # to be written
        self._waiting_size = 0
        self._dropped: list[bytes] = []
        self._lock = threading.Lock()  # of all above; held for moments
        self._queue: queue.SimpleQueue[tuple[bytes, Place | None] | None] = queue.SimpleQueue()
        self._was_behind = False
        try:
            # What prompts left behind is nobody else's to read.
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._scan()
        except OSError as error:
            raise ConfigError(
                f"{directory}: cannot hold the prefix cache ({error.strerror}); choose another"
            ) from None
        self._writer = threading.Thread(target=self._write_all, name="prefix-store", daemon=True)
        self._writer.start()

    def __contains__(self, key: bytes) -> bool:
        with self._lock:
            return key in self._files or key in self._waiting

    def places(self) -> dict[bytes, Place]:
        """Return the places of the states that are here, by key."""
        with self._lock:
            return dict(self._places)

    def take_dropped(self) -> list[bytes]:
        """Return the keys of entries that went, or that were not written, since the last call."""
        with self._lock:
            dropped, self._dropped = self._dropped, []
            return dropped

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
        if raw[:_HASH] != _hash(memoryview(raw)[_HASH:]):
            self.drop(key)
            return None
        return np.frombuffer(raw, dtype=np.uint8, offset=_HASH)

    def write(self, key: bytes, entry: Bytes, place: Place | None) -> None:
        """Write an entry soon, unless the disk is far behind; a state comes with its place."""
        with self._lock:
            if key in self._waiting:
                return
            is_behind = self._waiting_size >= min(_MOST_WAITING, self._capacity)
            if is_behind:
                self._dropped.append(key)
            else:
                self._waiting[key] = entry
                self._waiting_size += entry.nbytes
        if not is_behind:
            self._queue.put((key, place))
        elif not self._was_behind:
            self._was_behind = True  # once is enough
            logger.warning("%s: too slow for all prefixes; some are not kept", self._directory)

    def drop(self, key: bytes) -> None:
        """Remove an entry, if it is here."""
        with self._lock:
            name = self._remove(key)
        self._unlink(name)

    def close(self) -> None:
        """Write what waits, and end."""
        self._queue.put(None)
        self._writer.join()

    def _scan(self) -> None:
        found = []
        for file in os.scandir(self._directory):
            with contextlib.suppress(FileNotFoundError):  # another server removed it
                if f"{_SUFFIX}{_PARTIAL}" in file.name:
                    if not _is_alive(file.name.split(_PARTIAL)[1]):
                        os.unlink(file)  # of a server that was killed
                elif (named := _parse(file.name)) is not None and file.is_file():
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
                file = self._write(key, entry, place)
            except Exception as error:  # this entry's; others may fare better
                logger.warning("%s: prefix not kept (%r)", self._directory, error)
                file = None
            with self._lock:
                if file is not None:
                    self._add(key, file, place)
                else:
                    self._dropped.append(key)
                del self._waiting[key]
                self._waiting_size -= entry.nbytes
            self._shrink()

    def _write(self, key: bytes, entry: Bytes, place: Place | None) -> _File:
        name = key.hex() + ("" if place is None else f"-{place.block.hex()}-{place.tail}") + _SUFFIX
        partial = self._directory / f".{name}{_PARTIAL}{os.getpid()}"
        try:
            with open(partial, "wb", opener=_open_private) as stream:
                stream.write(_hash(entry.data))
                stream.write(entry.data)
            partial.rename(self._directory / name)
        finally:
            partial.unlink(missing_ok=True)
        return _File(name, _HASH + entry.nbytes)

    def _add(self, key: bytes, file: _File, place: Place | None) -> None:
        old = self._files.pop(key, None)
        self._files[key] = file
        self._size += file.size - (0 if old is None else old.size)
        if place is not None:
            self._places[key] = place

    def _shrink(self) -> None:
        names = []
        with self._lock:
            while self._size > self._capacity:
                names.append(self._remove(next(iter(self._files))))
        self._unlink(*names)

    def _remove(self, key: bytes) -> str | None:
        """Know an entry no more, under the lock; return the name of its file."""
        if (file := self._files.pop(key, None)) is None:
            return None
        self._size -= file.size
        self._places.pop(key, None)
        self._dropped.append(key)
        return file.name

    def _unlink(self, *names: str | None) -> None:
        for name in names:
            if name is not None:
                with contextlib.suppress(OSError):
                    (self._directory / name).unlink()


def _parse(name: str) -> tuple[bytes, Place | None] | None:
    """Return the key and place in the name of a file; None if it is another's."""
    if (match := _NAME.fullmatch(name)) is None:
        return None
    key, block, tail = match.groups()
    return bytes.fromhex(key), None if block is None else Place(bytes.fromhex(block), int(tail))


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)


def _is_alive(process: str) -> bool:
    return process.isdigit() and Path("/proc", process).exists()


def _hash(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=_HASH).digest()
