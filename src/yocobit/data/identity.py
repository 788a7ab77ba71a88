"""The identity of a corpus: its files, and the hashes and settings that determine its tokens.

Nothing is tokenised here. Corpora with equal identities have equal tokens, wherever their files are
stored.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yocobit.data.config import DataConfig, sources
from yocobit.data.sources import FileHashes, SourceFile, list_files
from yocobit.data.tokenizer import TOKENIZER_VERSION, fingerprint, load_tokenizer

SAMPLE_LENGTH = 1 << 27  # characters, at most, that a tokenizer is trained on
_VERSION = 5  # incremented when the tokens of the same files, or the layout of shards, change
# Shards of these versions are kept, so that a run resumes with its own tokens. They differ only
# where a message spells <|tool|> and, in version 3, where documents of more than 65,536 characters
# were cut.
_FORMER_VERSIONS = (3, 4)
# So are those of a tokenizer that was trained without cutting long words.
_FORMER_TOKENIZER = re.compile(r"(BPE \d+) 1 ")


@dataclass(frozen=True)
class CorpusFiles:
    """The files of each training source and of the validation text."""

    train: list[list[SourceFile]]
    valid: list[SourceFile]
    valid_every: int | None
    weights: list[float]  # of the sources
    ignored: Counter[str]  # files of other kinds in directories, by suffix

    @classmethod
    def of(cls, config: DataConfig) -> CorpusFiles:
        """List the files of [data]; sources without weights become one source."""
        ignored = Counter[str]()
        train, valid = (
            [list_files(source, config.exclude, ignored) for source in sources(items)]
            for items in (config.train, config.valid)
        )
        weights = [source.weight for source in sources(config.train) if source.weight is not None]
        if not weights:
            train, weights = [[file for files in train for file in files]], [1.0]
        held_out = [file for files in valid for file in files]
        return cls(train, held_out, config.valid_every, weights, ignored)

    @property
    def all(self) -> list[SourceFile]:
        """All files, those of the validation text last."""
        return [file for files in (*self.train, self.valid) for file in files]

    def in_both(self) -> int:
        """Return the number of files of the validation text that are also training text."""
        train = {file.inode for files in self.train for file in files}
        return len({file.inode for file in self.valid} & train)


def identify(
    config: DataConfig, vocab_size: int, files: CorpusFiles, hashes: FileHashes
) -> dict[str, Any]:
    """Return everything that determines the tokens, as JSON values.

    `hashes` are those of the files, as hash_files returns them.
    """

    def identity(files: Sequence[SourceFile]) -> str:
        digest = hashlib.sha256()
        for file in files:
            sha256 = hashes[file.key][2]
            fields = [file.name, file.size, sha256, file.text_field, file.by_line]
            digest.update(json.dumps(fields).encode() + b"\n")
        return digest.hexdigest()

    tokenizer = f"BPE {vocab_size} {TOKENIZER_VERSION} {SAMPLE_LENGTH} {files.weights}"
    if config.tokenizer is not None:
        tokenizer = fingerprint(load_tokenizer(Path(config.tokenizer)))
    return {
        "version": _VERSION,
        "train": [identity(source) for source in files.train],
        "valid": identity(files.valid),
        "valid_every": files.valid_every,
        "deduplicate": config.deduplicate,
        "tokenizer": tokenizer,
    }


def is_same_corpus(stored: dict[str, Any], identity: dict[str, Any]) -> bool:
    """Whether shards with a stored identity are the corpus of an identity."""
    former = [{**identity, "version": version} for version in _FORMER_VERSIONS]
    tokenizer = _FORMER_TOKENIZER.sub(rf"\1 {TOKENIZER_VERSION} ", str(stored.get("tokenizer")))
    return {**stored, "tokenizer": tokenizer} in (identity, *former)
