"""Tokens on disk: shards of bounded size that read as one sequence.

NAME-00000.bin, NAME-00001.bin, ... are tokens. NAME-00000.mask is the loss mask of a shard, a byte
per token: 1 if the token is in the loss. In a shard without this file, all tokens are in the loss.

Shards are read, not mapped into memory: a mapped file that another process truncates ends its
reader with SIGBUS.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from yocobit.disk import flush, sha256, writing
from yocobit.errors import ConfigError
from yocobit.hardware.host import default_threads
from yocobit.settings import Count, Natural

SHARD_BYTES = 1 << 30

_Array = NDArray[Any]
_Suffix = Literal[".bin", ".mask"]
_NAME = r"(train-[0-9]+|valid)-[0-9]{5,}"  # of a shard, without its suffix


class Shard(Struct):
    """A shard as index.json records it."""

    name: Annotated[str, Meta(pattern=f"^{_NAME}$")]  # without a suffix
    tokens: Count
    has_mask: bool
    # Of each file, by suffix; empty if an earlier version wrote it.
    sha256: dict[_Suffix, str] = {}

    def sizes(self, itemsize: int) -> dict[_Suffix, int]:
        """Return the size of each file of the shard in bytes, by suffix."""
        sizes: dict[_Suffix, int] = {".bin": itemsize * self.tokens}
        return {**sizes, ".mask": self.tokens} if self.has_mask else sizes


class ShardList(Struct):
    """The shards of one sequence and its counts, as index.json records them."""

    shards: list[Shard]
    dtype: Literal["uint16", "uint32"]
    tokens: Natural
    scored_tokens: Natural  # in the loss
    bytes: Natural  # UTF-8 length of the tokens in the loss
    documents: Natural

    def __post_init__(self) -> None:
        if sum(shard.tokens for shard in self.shards) != self.tokens:
            raise ValueError(f"shards must have {self.tokens} tokens in all")


def _digests() -> dict[_Suffix, hashlib._Hash]:
    return {".bin": hashlib.sha256(), ".mask": hashlib.sha256()}


class ShardWriter:
    """Writes the tokens of one sequence; `close` returns the list that Tokens opens."""

    def __init__(self, directory: Path, name: str, dtype: str) -> None:
        self.directory, self.name, self.dtype = directory, name, np.dtype(dtype)
        self.shards: list[Shard] = []
        self.counts = {"tokens": 0, "scored_tokens": 0, "bytes": 0, "documents": 0}
        self.tokens_file: BinaryIO | None = None
        self.mask_file: BinaryIO | None = None
        self.n_in_shard = 0  # tokens in the open shard
        self.digests = _digests()  # of the open shard

    def write(self, tokens: _Array, in_loss: bool) -> None:
        """Append tokens (T,), all of them in the loss or none."""
        self.counts["tokens"] += len(tokens)
        self.counts["scored_tokens"] += len(tokens) if in_loss else 0
        capacity = max(1, SHARD_BYTES // self.dtype.itemsize)
        while len(tokens) > 0:
            part, tokens = np.split(tokens, [capacity - self.n_in_shard])
            self._write(part, in_loss)
            if self.n_in_shard == capacity:
                self._close_shard()

    def close(self) -> ShardList:
        """End the sequence and flush it to disk; return its entry for the index."""
        self._close_shard()
        dtype: Literal["uint16", "uint32"] = "uint16" if self.dtype.itemsize == 2 else "uint32"
        return ShardList(self.shards, dtype, **self.counts)

    def abandon(self) -> None:
        """Close open files without completing them."""
        for file in (self.tokens_file, self.mask_file):
            if file is not None:
                with suppress(OSError):  # closing retries a failed write
                    file.close()

    def _write(self, tokens: _Array, in_loss: bool) -> None:
        with writing(self._path(".bin")):
            if self.tokens_file is None:
                self.tokens_file = self._path(".bin").open("wb")
            if self.mask_file is None and not in_loss:
                self.mask_file = self._path(".mask").open("wb")
                self._append(self.mask_file, ".mask", b"\1" * self.n_in_shard)
            self._append(self.tokens_file, ".bin", tokens.astype(self.dtype).tobytes())
            if self.mask_file is not None:
                self._append(self.mask_file, ".mask", (b"\1" if in_loss else b"\0") * len(tokens))
        self.n_in_shard += len(tokens)

    def _append(self, file: BinaryIO, suffix: _Suffix, data: bytes) -> None:
        file.write(data)
        self.digests[suffix].update(data)

    def _close_shard(self) -> None:
        if self.tokens_file is None:
            return
        for file, suffix in ((self.tokens_file, ".bin"), (self.mask_file, ".mask")):
            if file is not None:
                with writing(self._path(suffix)):
                    file.close()  # writes the buffer
                    flush(self._path(suffix))
        has_mask = self.mask_file is not None
        shard = Shard(self._path("").name, self.n_in_shard, has_mask)
        suffixes = shard.sizes(self.dtype.itemsize)
        shard.sha256 = {suffix: self.digests[suffix].hexdigest() for suffix in suffixes}
        self.digests = _digests()
        self.shards.append(shard)
        self.tokens_file = self.mask_file = None
        self.n_in_shard = 0

    def _path(self, suffix: str) -> Path:
        return self.directory / f"{self.name}-{len(self.shards):05d}{suffix}"


class Tokens:
    """The tokens of one sequence; each document ends with the EOS token.

    A read raises ConfigError if a shard is no longer the file that was opened, or has a token
    outside the vocabulary.
    """

    def __init__(self, directory: Path, shards: ShardList, vocab_size: int) -> None:
        """Open the shards that ShardWriter.close returned."""
        self.n_bytes: int = shards.bytes  # UTF-8 length of the tokens in the loss
        self.n_documents: int = shards.documents
        self.n_in_loss: int = shards.scored_tokens
        self.has_mask = any(shard.has_mask for shard in shards.shards)
        self._vocab_size = vocab_size
        self._starts = [0, *accumulate(shard.tokens for shard in shards.shards)]
        self._shards, self._masks = [], []
        for shard in shards.shards:
            path = directory / f"{shard.name}.bin"
            self._shards.append(_ShardFile.open(path, shards.dtype, shard.tokens))
            mask = directory / f"{shard.name}.mask"
            self._masks.append(
                _ShardFile.open(mask, "bool", shard.tokens) if shard.has_mask else None
            )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, end: int) -> _Array:
        """Return tokens `start` to `end`, as int64."""
        parts = [np.empty(0, np.int64)]
        for i, part in self._parts(start, end):
            tokens = self._shards[i].read(part)
            if (largest := int(tokens.max(initial=0))) >= self._vocab_size:
                raise ConfigError(
                    f"{self._shards[i].path}: has token {largest} but the vocabulary has "
                    f"{self._vocab_size} tokens; delete the file and run the command again"
                )
            parts.append(tokens)
        return np.concatenate(parts, dtype=np.int64)

    def loss_mask(self, start: int, end: int) -> NDArray[np.bool_]:
        """Return whether each of tokens `start` to `end` is in the loss."""
        found = np.ones(max(0, end - start), dtype=np.bool_)
        at = 0
        for i, part in self._parts(start, end):
            n = part.stop - part.start
            if (mask := self._masks[i]) is not None:
                found[at : at + n] = mask.read(part)
            at += n
        return found

    def _parts(self, start: int, end: int) -> Iterator[tuple[int, slice]]:
        """Yield the index of each shard with some of tokens `start` to `end`, and their slice."""
        first = max(0, int(np.searchsorted(self._starts, start, side="right")) - 1)
        for i, (low, high) in enumerate(pairwise(self._starts[first:]), start=first):
            if low >= end:
                return
            yield i, slice(max(start, low) - low, min(end, high) - low)


@dataclass(frozen=True)
class _ShardFile:
    """A file of a shard, opened for each read: a mixture may have more files than descriptors."""

    path: Path
    dtype: np.dtype[Any]
    status: tuple[int, ...]

    @classmethod
    def open(cls, path: Path, dtype: str, n_values: int) -> _ShardFile:
        """Check the size of a file and record which file it is."""
        try:
            status = os.stat(path)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
        size = n_values * np.dtype(dtype).itemsize
        if status.st_size != size:
            raise ConfigError(f"{path}: must have {size:,} bytes but has {status.st_size:,}")
        return cls(path, np.dtype(dtype), _version(status))

    def read(self, part: slice) -> _Array:
        """Return some values; ConfigError unless the file is the one that was opened."""
        size, offset = (n * self.dtype.itemsize for n in (part.stop - part.start, part.start))
        try:
            with self.path.open("rb", buffering=0) as stream:
                is_same = _version(os.fstat(stream.fileno())) == self.status
                stream.seek(offset)
                data = stream.read(size) if is_same else b""
        except FileNotFoundError:
            data = b""
        if len(data) != size:
            raise ConfigError(
                f"{self.path}: has changed since it was opened; run the command again, with "
                "--resume to continue a run"
            )
        return np.frombuffer(data, self.dtype)


def _version(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def is_complete(directory: Path, shards: ShardList) -> bool:
    """Whether every file of a sequence is present in its full size."""
    itemsize = np.dtype(shards.dtype).itemsize
    for shard in shards.shards:
        for suffix, size in shard.sizes(itemsize).items():
            path = directory / f"{shard.name}{suffix}"
            if not path.is_file() or path.stat().st_size != size:
                return False
    return True


def check_intact(directory: Path, hashes: Mapping[str, str]) -> None:
    """Raise ConfigError that names a file which differs from its hash; reads all of them once."""
    files = {directory / name: digest for name, digest in hashes.items()}
    with ThreadPoolExecutor(max_workers=default_threads()) as pool:  # hashing releases the GIL
        digests = pool.map(sha256, files)
        for path, digest in zip(files, digests, strict=True):
            if digest != files[path]:
                raise ConfigError(
                    f"{path}: is damaged: its SHA-256 differs from that in index.json; delete the "
                    "file and run the command again, which prepares the corpus again"
                )


def remove_shards(directory: Path) -> None:
    """Delete every shard in a directory, and no other file."""
    for path in directory.iterdir():
        is_shard = path.suffix in (".bin", ".mask") and re.fullmatch(_NAME, path.stem)
        if is_shard and (path.is_symlink() or not path.is_dir()):  # a FIFO would block the writer
            path.unlink()
