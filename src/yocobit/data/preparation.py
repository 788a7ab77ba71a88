"""From source files to tokens on disk, made once: what corpus.py opens.

RUN/data/ holds tokenizer.json, the shards of each source of the training text (train-0-00000.bin,
...) and of the validation text, and index.json. The index is written last; it says how many tokens,
bytes and documents there are and what they were made from: the name, size and SHA-256 of each file,
the tokenizer and the settings. While that is the same, what is there is used again.

Files are read once to hash them, in part to train a tokenizer, and once to tokenise them; with the
time and size that the index remembers, they are not read at all.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from yocobit.config import ConfigError
from yocobit.data.config import DataConfig, sources
from yocobit.data.documents import Documents
from yocobit.data.seen import Seen
from yocobit.data.shards import ShardWriter, is_whole, remove_shards
from yocobit.data.sources import (
    Known,
    SourceFile,
    check_unchanged,
    fingerprints,
    list_files,
    to_know,
)
from yocobit.data.tokenizer import (
    TOKENIZER_VERSION,
    end_token,
    fingerprint,
    load_tokenizer,
    train_tokenizer,
)
from yocobit.disk import replacing, write_json

TOKENIZER = "tokenizer.json"
INDEX = "index.json"

_VERSION = 3  # to raise when the same files would give other tokens or another layout
SAMPLE_LENGTH = 1 << 27  # characters that a tokenizer is trained on, at most
_BATCH_LENGTH = 1 << 21  # characters that are tokenised at once, by all threads


@dataclass(frozen=True)
class _Text:
    """The files of each source of the training text, and those of the validation text."""

    train: list[list[SourceFile]]
    valid: list[SourceFile]
    valid_every: int | None
    weights: list[float]  # of the sources
    unread: Counter[str]  # other files of directories, by suffix

    @property
    def files(self) -> list[SourceFile]:
        return [file for files in (*self.train, self.valid) for file in files]

    def is_valid(self, name: str) -> bool:
        """Whether a document of the training files is held out, by its name alone."""
        if self.valid_every is None:
            return False
        digest = hashlib.sha256(name.encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.valid_every == 0


def made_index(config: DataConfig, vocab_size: int, directory: Path) -> dict[str, Any]:
    """Return the index of `directory`, whose files are made first unless they are current.

    Beside it, in `unread`, the number of files that were left out, by suffix.
    """
    text = _list(config)
    before = _read_index(directory)
    inputs, known = _identify(config, vocab_size, text, before.get("known", {}))
    index = before
    if before.get("inputs") != inputs or not _is_current(directory, before):
        index = {**_make(config, text, vocab_size, directory), "inputs": inputs}
        check_unchanged(text.files)
    if index.get("known") != known:
        _write_index(directory, {**index, "known": known})
    return {**index, "unread": text.unread}


def _list(config: DataConfig) -> _Text:
    unread = Counter[str]()
    train, valid = (
        [list_files(source, config.exclude, unread) for source in sources(items)]
        for items in (config.train, config.valid)
    )
    weights = [source.weight for source in sources(config.train) if source.weight is not None]
    if not weights:  # all of it is one source, laid end to end
        train, weights = [[file for files in train for file in files]], [1.0]
    held_out = [file for files in valid for file in files]
    return _Text(train, held_out, config.valid_every, weights, unread)


def _identify(
    config: DataConfig, vocab_size: int, text: _Text, known: Known
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what decides the tokens, and what spares reading the files again."""
    files = text.files
    hashes = fingerprints(files, {path: (*values,) for path, values in known.items()})
    by_path = dict(zip((file.path for file in files), hashes, strict=True))

    def identity(files: Sequence[SourceFile]) -> str:
        digest = hashlib.sha256()
        for file in files:
            how = [file.name, file.size, by_path[file.path], file.text_field, file.by_line]
            digest.update(json.dumps(how).encode() + b"\n")
        return digest.hexdigest()

    tokenizer = f"BPE {vocab_size} {TOKENIZER_VERSION} {SAMPLE_LENGTH} {text.weights}"
    if config.tokenizer is not None:
        tokenizer = fingerprint(load_tokenizer(Path(config.tokenizer)))
    inputs = {
        "version": _VERSION,
        "train": [identity(files) for files in text.train],
        "valid": identity(text.valid),
        "valid_every": text.valid_every,
        "deduplicate": config.deduplicate,
        "tokenizer": tokenizer,
    }
    return inputs, {path: list(values) for path, values in to_know(files, hashes).items()}


def _read_index(directory: Path) -> dict[str, Any]:
    try:
        index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return index if isinstance(index, dict) else {}


def _is_current(directory: Path, index: dict[str, Any]) -> bool:
    """Whether all that the index names is there, whole."""
    tokenizer = directory / TOKENIZER
    if not tokenizer.exists() or tokenizer.stat().st_size != index["tokenizer_bytes"]:
        return False
    return all(is_whole(directory, entry) for entry in (*index["train"], index["valid"]))


def _write_index(directory: Path, index: dict[str, Any]) -> None:
    with replacing(directory / INDEX) as partial:
        write_json(partial, index)


def _make(config: DataConfig, text: _Text, vocab_size: int, directory: Path) -> dict[str, Any]:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / INDEX).unlink(missing_ok=True)
    remove_shards(directory)
    if config.tokenizer is not None:
        tokenizer = load_tokenizer(Path(config.tokenizer))
    else:
        tokenizer = train_tokenizer(_sample(text), vocab_size)
    path = directory / TOKENIZER
    with replacing(path) as partial:
        partial.write_text(tokenizer.to_str(), encoding="utf-8")
    try:
        made = _Tokenising(text, tokenizer, Seen() if config.deduplicate else None, directory).run()
    except OSError:  # as of a full disk, where there are too many already
        remove_shards(directory)
        raise
    for i, entry in enumerate(made["train"]):
        if entry["documents"] == 0:
            which = f"train[{i}]" if len(made["train"]) > 1 else "the train split"
            raise ConfigError(f"{_names(text.train[i])}: no text for {which}")
    if made["valid"]["documents"] == 0:
        remedy = "; lower data.valid_every" if text.valid_every else ""
        where = _names(text.valid or text.files)
        raise ConfigError(f"{where}: no text for the valid split{remedy}")
    sizes = {"tokenizer_sha256": fingerprint(tokenizer), "tokenizer_bytes": path.stat().st_size}
    return {**made, **sizes}


def _names(files: Sequence[SourceFile]) -> str:
    more = f" and {len(files) - 1:,} more files" if len(files) > 1 else ""
    return f"{files[0].path}{more}"


def _sample(text: _Text) -> Iterator[str]:
    """Yield text to train a tokenizer on: from the start of every file, by size and weight."""
    for files, weight in zip(text.train, text.weights, strict=True):
        share = SAMPLE_LENGTH * weight / sum(text.weights)
        size = sum(file.size for file in files)
        allowed = taken = 0.0
        for file in files:
            allowed += share * file.size / size if size else 0.0
            for document in Documents([file]):
                if taken >= allowed:
                    break
                if text.is_valid(document.name):
                    continue
                for piece in document.pieces:
                    if taken >= allowed:
                        break
                    taken += len(piece.text)
                    yield piece.text


class _Tokenising:
    """One pass over the documents in their order; the tokenizer's own threads share a batch."""

    def __init__(
        self, text: _Text, tokenizer: Tokenizer, seen: Seen | None, directory: Path
    ) -> None:
        self.text, self.tokenizer, self.seen = text, tokenizer, seen
        self.end = end_token(tokenizer)
        dtype = "uint16" if tokenizer.get_vocab_size() <= 1 << 16 else "uint32"
        self.valid = ShardWriter(directory, "valid", dtype)
        self.train = [ShardWriter(directory, f"train-{i}", dtype) for i in range(len(text.train))]
        self.skipped: set[str] = set()
        self.n_duplicates = 0
        # Text not tokenised yet: where it goes, whether it is learnt, whether a document ends.
        self.waiting: list[tuple[str, ShardWriter, bool, bool]] = []
        self.n_waiting = 0  # characters

    def run(self) -> dict[str, Any]:
        """Write all shards; return their entries in the index, and what was left out."""
        try:
            # First, as of two equal documents the first is kept.
            self._add(self.text.valid, self.valid)
            train = []
            for files, writer in zip(self.text.train, self.train, strict=True):
                self._add(files, writer)
                self._tokenise()
                train.append(writer.close())  # now: of many sources, few files are open
            valid = self.valid.close()
        finally:
            for writer in (self.valid, *self.train):
                writer.abandon()
        return {
            "train": train,
            "valid": valid,
            "n_skipped": len(self.skipped),
            "n_duplicates": self.n_duplicates,
        }

    def _add(self, files: Sequence[SourceFile], writer: ShardWriter) -> None:
        for document in Documents(files, self.skipped):
            if self.seen is not None and not self.seen.add(document.digest()):
                self.n_duplicates += 1
                continue
            to = self.valid if self.text.is_valid(document.name) else writer
            to.counts["documents"] += 1
            last = None
            for piece in document.pieces:
                if last is not None:
                    self._wait(last.text, to, last.is_scored, is_last=False)
                last = piece
            if last is not None:
                self._wait(last.text, to, last.is_scored, is_last=True)

    def _wait(self, text: str, writer: ShardWriter, is_scored: bool, is_last: bool) -> None:
        self.waiting.append((text, writer, is_scored, is_last))
        self.n_waiting += len(text)
        if self.n_waiting >= _BATCH_LENGTH:
            self._tokenise()

    def _tokenise(self) -> None:
        texts = [text for text, *_ in self.waiting]
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        for (text, writer, is_scored, is_last), encoding in zip(
            self.waiting, encodings, strict=True
        ):
            tokens = np.array([*encoding.ids, self.end] if is_last else encoding.ids, np.uint32)
            writer.write(tokens, is_scored)
            writer.counts["bytes"] += len(text.encode()) if is_scored else 0
        self.waiting, self.n_waiting = [], 0
