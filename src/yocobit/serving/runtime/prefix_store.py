"""The prefix cache on disk: it survives the server, even a killed one.

One file per entry, named by its key, written by a separate thread and verified against its hash
when read. Nothing waits for the disk: a file torn by a power failure is a miss. Keys include the
model's identity, so several models may share a directory.
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
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yocobit.config import ConfigError
from yocobit.errors import UserError
from yocobit.reading import read_bytes

_SUFFIX, _PARTIAL = ".prefix", ".partial-"
_HASH = 32  # bytes of the hash at the start of a file
# The key of a block, or that of a state with its location.
_NAME = re.compile(rf"([0-9a-f]{{64}})(?:-([0-9a-f]{{64}})-([0-9]{{1,4}}))?{re.escape(_SUFFIX)}")
_SCAN_SHARE = 50  # scans for entries of other servers take at most one part of the time
_RESOLUTION_NS = 10**8  # of a directory's time of change, amply
_MAX_PENDING_BYTES = 256 << 20  # of entries to be written

Bytes = NDArray[np.uint8]

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class StateLocation:
    """The position of a state: `tail` tokens after the block with that key."""

    block: bytes
    tail: int


@dataclasses.dataclass(frozen=True)
class _File:
    name: str
    size: int  # bytes


class PrefixStore:
    """Entries in a directory, of up to `capacity` bytes; the least recently used are evicted first.

    Its methods are called by one thread.
    """

    def __init__(self, directory: Path, capacity: int) -> None:
        """Open or create the directory; ConfigError if that fails."""
        self._directory = directory
        self._capacity = capacity
        self._files: OrderedDict[bytes, _File] = OrderedDict()
        self._locations: dict[bytes, StateLocation] = {}
        self._size = 0
        self._pending: dict[bytes, Bytes] = {}  # to be written
        self._pending_size = 0
        self._dropped: list[bytes] = []
        self._lock = threading.Lock()  # guards the fields above; never held during I/O
        self._queue: queue.SimpleQueue[tuple[bytes, StateLocation | None] | None] = (
            queue.SimpleQueue()
        )
        self._was_behind = False
        self._scanned_ns: int | None = None  # the directory's time of change, at the last scan
        self._next_scan_at = 0.0
        try:
            # Prompts are private: no other user may read them.
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
            return key in self._files or key in self._pending

    def refresh(self) -> dict[bytes, StateLocation]:
        """Add the entries that other servers wrote; return the locations of their states."""
        now = time.monotonic()
        if now < self._next_scan_at:
            return {}
        with contextlib.suppress(OSError):
            changed_ns = os.stat(self._directory).st_mtime_ns
            if changed_ns != self._scanned_ns:
                found = self._scan()
                took_s = time.monotonic() - now
                self._next_scan_at = now + _SCAN_SHARE * took_s
                # An entry could follow within the resolution of the directory's time.
                is_old = time.time_ns() - changed_ns > _RESOLUTION_NS
                self._scanned_ns = changed_ns if is_old else None
                return found
        return {}

    def locations(self) -> dict[bytes, StateLocation]:
        """Return the locations of the stored states, by key."""
        with self._lock:
            return dict(self._locations)

    def take_dropped(self) -> list[bytes]:
        """Return the keys of entries that were evicted or not written since the last call."""
        with self._lock:
            dropped, self._dropped = self._dropped, []
            return dropped

    def read(self, key: bytes) -> Bytes | None:
        """Return an entry; None if it is missing or damaged."""
        with self._lock:
            if (entry := self._pending.get(key)) is not None:
                return entry
            if (file := self._files.get(key)) is None:
                return None
            self._files.move_to_end(key)
        path = self._directory / file.name
        try:
            raw = read_bytes(path, file.size)
            os.utime(path)
        except (OSError, UserError):
            raw = b""
        if raw[:_HASH] != _hash(memoryview(raw)[_HASH:]):
            self.drop(key)
            return None
        return np.frombuffer(raw, dtype=np.uint8, offset=_HASH)

    def write(self, key: bytes, entry: Bytes, location: StateLocation | None) -> None:
        """Queue an entry for writing, unless too many are pending; states have a location."""
        with self._lock:
            if key in self._pending:
                return
            is_behind = self._pending_size >= min(_MAX_PENDING_BYTES, self._capacity)
            if is_behind:
                self._dropped.append(key)
            else:
                self._pending[key] = entry
                self._pending_size += entry.nbytes
        if not is_behind:
            self._queue.put((key, location))
        elif not self._was_behind:
            self._was_behind = True  # warn once
            logger.warning(
                "%s: the disk is too slow; some prefixes are not stored", self._directory
            )

    def drop(self, key: bytes) -> None:
        """Remove an entry, if it exists."""
        with self._lock:
            name = self._remove(key)
        self._unlink(name)

    def close(self, timeout_s: float | None = None) -> None:
        """Write all pending entries, then stop the writer thread; give up after `timeout_s`."""
        self._queue.put(None)
        self._writer.join(timeout_s)

    def _scan(self) -> dict[bytes, StateLocation]:
        """Add the files that are not known yet; return the locations of states among them."""
        with self._lock:
            known = {file.name for file in self._files.values()}
        found = []
        for file in os.scandir(self._directory):
            with contextlib.suppress(FileNotFoundError):  # another server removed it
                if f"{_SUFFIX}{_PARTIAL}" in file.name:
                    if not _is_alive(file.name.split(_PARTIAL)[1]):
                        os.unlink(file)  # left by a killed server
                elif (
                    file.name not in known
                    and (named := _parse(file.name)) is not None
                    and file.is_file(follow_symlinks=False)
                ):
                    status = file.stat(follow_symlinks=False)
                    found.append((status.st_mtime_ns, file.name, status.st_size, *named))
        found.sort(key=lambda each: each[:2])
        with self._lock:
            for _, name, size, key, location in found:
                self._add(key, _File(name, size), location)
        self._evict()
        return {key: location for *_, key, location in found if location is not None}

    def _write_all(self) -> None:
        while (item := self._queue.get()) is not None:
            key, location = item
            entry = self._pending[key]
            try:
                file = self._write(key, entry, location)
            except Exception as error:  # of this entry; later ones may succeed
                logger.warning("%s: prefix not stored (%r)", self._directory, error)
                file = None
            with self._lock:
                if file is not None:
                    self._add(key, file, location)
                else:
                    self._dropped.append(key)
                del self._pending[key]
                self._pending_size -= entry.nbytes
            self._evict()

    def _write(self, key: bytes, entry: Bytes, location: StateLocation | None) -> _File:
        name = (
            key.hex()
            + ("" if location is None else f"-{location.block.hex()}-{location.tail}")
            + _SUFFIX
        )
        partial = self._directory / f".{name}{_PARTIAL}{os.getpid()}"
        try:
            with open(partial, "wb", opener=_open_private) as stream:
                stream.write(_hash(entry.data))
                stream.write(entry.data)
            partial.rename(self._directory / name)
        finally:
            partial.unlink(missing_ok=True)
        return _File(name, _HASH + entry.nbytes)

    def _add(self, key: bytes, file: _File, location: StateLocation | None) -> None:
        old = self._files.pop(key, None)
        self._files[key] = file
        self._size += file.size - (0 if old is None else old.size)
        if location is not None:
            self._locations[key] = location

    def _evict(self) -> None:
        names = []
        with self._lock:
            while self._size > self._capacity:
                names.append(self._remove(next(iter(self._files))))
        self._unlink(*names)

    def _remove(self, key: bytes) -> str | None:
        """Remove an entry from the index, with the lock held; return its file's name."""
        if (file := self._files.pop(key, None)) is None:
            return None
        self._size -= file.size
        self._locations.pop(key, None)
        self._dropped.append(key)
        return file.name

    def _unlink(self, *names: str | None) -> None:
        for name in names:
            if name is not None:
                with contextlib.suppress(OSError):
                    (self._directory / name).unlink()


def _parse(name: str) -> tuple[bytes, StateLocation | None] | None:
    """Return the key and location in a file's name; None if the file is not ours."""
    if (match := _NAME.fullmatch(name)) is None:
        return None
    key, block, tail = match.groups()
    return bytes.fromhex(key), None if block is None else StateLocation(
        bytes.fromhex(block), int(tail)
    )


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)


def _is_alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except PermissionError:
        return True  # of another user
    except (OSError, ValueError, OverflowError):
        return False
    return True


def _hash(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=_HASH).digest()
