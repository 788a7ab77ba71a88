"""Tokens on disk: memory-mapped shards of bounded size that read as one sequence.

NAME-00000.bin, NAME-00001.bin, ... are tokens. NAME-00000.mask is the loss mask of a shard, a byte
per token: 1 if the token is in the loss. In a shard without this file, all tokens are in the loss.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from yocobit.disk import flush, writing

SHARD_BYTES = 1 << 30

_Array = NDArray[Any]


class ShardWriter:
    """Writes the tokens of one sequence; `close` returns the entry that Tokens opens."""

    def __init__(self, directory: Path, name: str, dtype: str) -> None:
        self.directory, self.name, self.dtype = directory, name, np.dtype(dtype)
        self.shards: list[dict[str, Any]] = []
        self.counts = {"tokens": 0, "scored_tokens": 0, "bytes": 0, "documents": 0}
        self.tokens_file: BinaryIO | None = None
        self.mask_file: BinaryIO | None = None
        self.n_in_shard = 0  # tokens in the open shard

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

    def close(self) -> dict[str, Any]:
        """End the sequence and flush it to disk; return its entry for the index."""
        self._close_shard()
        return {"shards": self.shards, "dtype": self.dtype.name, **self.counts}

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
                self.mask_file.write(b"\1" * self.n_in_shard)
            self.tokens_file.write(tokens.astype(self.dtype).tobytes())
            if self.mask_file is not None:
                self.mask_file.write((b"\1" if in_loss else b"\0") * len(tokens))
        self.n_in_shard += len(tokens)

    def _close_shard(self) -> None:
        if self.tokens_file is None:
            return
        shard = {"tokens": self.n_in_shard, "has_mask": self.mask_file is not None}
        for file, suffix in ((self.tokens_file, ".bin"), (self.mask_file, ".mask")):
            if file is not None:
                with writing(self._path(suffix)):
                    file.close()  # writes the buffer
                    flush(self._path(suffix))
        self.shards.append({"name": self._path("").name, **shard})
        self.tokens_file = self.mask_file = None
        self.n_in_shard = 0

    def _path(self, suffix: str) -> Path:
        return self.directory / f"{self.name}-{len(self.shards):05d}{suffix}"


class Tokens:
    """The tokens of one sequence, mapped into memory; each document ends with the end token."""

    def __init__(self, directory: Path, entry: dict[str, Any]) -> None:
        """Open the sequence of an entry that ShardWriter.close returned."""
        shards = entry["shards"]
        self.n_bytes: int = entry["bytes"]  # UTF-8 length of the tokens in the loss
        self.n_documents: int = entry["documents"]
        self.n_in_loss: int = entry["scored_tokens"]
        self.has_mask = any(shard["has_mask"] for shard in shards)
        self._starts = [0, *accumulate(shard["tokens"] for shard in shards)]
        self._shards = [
            np.memmap(directory / f"{shard['name']}.bin", dtype=entry["dtype"], mode="r")
            for shard in shards
        ]
        self._masks = [
            np.memmap(directory / f"{shard['name']}.mask", dtype=np.bool_, mode="r")
            if shard["has_mask"]
            else None
            for shard in shards
        ]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, end: int) -> _Array:
        """Return a copy of tokens `start` to `end`, as int64."""
        parts = [self._shards[i][part] for i, part in self._parts(start, end)]
        return np.concatenate([np.empty(0, np.int64), *parts], dtype=np.int64)

    def loss_mask(self, start: int, end: int) -> NDArray[np.bool_]:
        """Return whether each of tokens `start` to `end` is in the loss."""
        found = np.ones(max(0, end - start), dtype=np.bool_)
        at = 0
        for i, part in self._parts(start, end):
            n = part.stop - part.start
            if (mask := self._masks[i]) is not None:
                found[at : at + n] = mask[part]
            at += n
        return found

    def _parts(self, start: int, end: int) -> Iterator[tuple[int, slice]]:
        """Yield each shard that has some of tokens `start` to `end`, and their place in it."""
        first = max(0, int(np.searchsorted(self._starts, start, side="right")) - 1)
        for i, (low, high) in enumerate(pairwise(self._starts[first:]), start=first):
            if low >= end:
                return
            yield i, slice(max(start, low) - low, min(end, high) - low)


def is_complete(directory: Path, entry: dict[str, Any]) -> bool:
    """Whether every file of a sequence is present in its full size."""
    itemsize = np.dtype(entry["dtype"]).itemsize
    for shard in entry["shards"]:
        suffixes = {".bin": itemsize, **({".mask": 1} if shard["has_mask"] else {})}
        for suffix, size in suffixes.items():
            path = directory / f"{shard['name']}{suffix}"
            if not path.exists() or os.stat(path).st_size != size * shard["tokens"]:
                return False
    return True


def remove_shards(directory: Path) -> None:
    """Delete every shard in a directory."""
    for suffix in (".bin", ".mask"):
        for path in directory.glob(f"*{suffix}"):
            path.unlink()
