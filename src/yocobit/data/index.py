"""index.json of a prepared corpus: its identity, its shards, and the hashes of its files.

It is written last: a directory without one has no corpus. A damaged index means that the corpus is
prepared again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from yocobit.data.shards import ShardList, is_complete
from yocobit.disk import replacing, write_json
from yocobit.errors import ConfigError
from yocobit.reading import read_json
from yocobit.settings import Natural

INDEX, TOKENIZER = "index.json", "tokenizer.json"


class Index(Struct):
    """The content of index.json; unknown fields are ignored."""

    inputs: dict[str, Any]  # the identity of the corpus
    train: Annotated[list[ShardList], Meta(min_length=1)]  # of each source
    valid: ShardList
    tokenizer_sha256: str
    tokenizer_bytes: Natural
    n_skipped: Natural
    n_duplicates: Natural
    known: dict[str, tuple[int, int, str]] = {}  # size, mtime in ns and SHA-256 of files, by path
    sha256: str | None = None  # of all other fields; None if an earlier version wrote it

    @classmethod
    def read(cls, directory: Path) -> Index | None:
        """Read the index of a directory; None without one, ConfigError if it is damaged."""
        path = directory / INDEX
        try:
            index = read_json(path, cls)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
        if index.sha256 not in (None, _digest(read_json(path))):
            raise ConfigError(f"{path}: is damaged: its SHA-256 differs from that in it")
        return index

    def write(self, directory: Path) -> None:
        """Write or replace the index of a directory."""
        self.sha256 = _digest(msgspec.to_builtins(self))
        with replacing(directory / INDEX) as partial:
            write_json(partial, msgspec.to_builtins(self))

    @property
    def hashes(self) -> dict[str, str]:
        """The hashes of shards and tokenizer, by file."""
        shards = [shard for each in (*self.train, self.valid) for shard in each.shards]
        files = {f"{s.name}{suffix}": d for s in shards for suffix, d in s.sha256.items()}
        return {**files, TOKENIZER: self.tokenizer_sha256}

    def has_files(self, directory: Path) -> bool:
        """Whether every file of the index is present in its full size."""
        tokenizer = directory / TOKENIZER
        if not tokenizer.is_file() or tokenizer.stat().st_size != self.tokenizer_bytes:
            return False
        return all(is_complete(directory, shards) for shards in (*self.train, self.valid))


def _digest(fields: Mapping[str, Any]) -> str:
    """Return the hash of all fields, also of a newer version's, but the hash itself."""
    hashed = json.dumps({**fields, "sha256": None}, sort_keys=True)
    return hashlib.sha256(hashed.encode()).hexdigest()
