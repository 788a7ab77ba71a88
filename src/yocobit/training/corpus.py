"""The corpus of a run: documents split into training and validation, as tokens on disk.

RUN/data/ holds tokenizer.json, train.bin, valid.bin (uint16 or uint32, memory-mapped) and
index.json, which says what they were made from; they are made again when that changes. Each
document ends with the end token.

Letters: B batch   T positions
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from yocobit.config import ConfigError
from yocobit.disk import flush, write_json
from yocobit.training.config import DataConfig
from yocobit.training.documents import Document, Documents
from yocobit.training.tokenizer import (
    TOKENIZER_VERSION,
    end_token,
    fingerprint,
    load_tokenizer,
    train_tokenizer,
)

TOKENIZER = "tokenizer.json"
_INDEX = "index.json"
_BATCH = 256  # documents tokenised at once


@dataclass(frozen=True)
class Shard:
    """The tokens of one split and the number of UTF-8 bytes of text that they spell."""

    tokens: np.ndarray[Any, Any]
    n_bytes: int


@dataclass(frozen=True)
class Corpus:
    """What training reads. `sha256` is of every document and the tokenizer."""

    tokenizer: Tokenizer
    train: Shard
    valid: Shard
    sha256: str
    n_skipped: int  # .py files that are not UTF-8

    def batch(self, seed: int, first: int, size: int, context: int) -> tuple[Tensor, Tensor]:
        """Return windows `first` to `first + size` of an endless shuffled pass over the text.

        Inputs and targets are (B, T). Within a pass no two windows overlap; each pass shifts the
        cuts and the order. A pure function of its arguments.
        """
        n_tokens = len(self.train.tokens) - 1  # each window has one more: the last target
        n_windows = max(1, n_tokens // context - 1)  # one less than fit: room for the shift
        rows = []
        for index in range(first, first + size):
            order, shift = _pass(seed, index // n_windows, n_windows, n_tokens, context)
            start = int(order[index % n_windows]) * context + shift
            rows.append(self.train.tokens[start : start + context + 1])
        windows = torch.from_numpy(np.stack(rows).astype(np.int64))  # (B, T + 1)
        return windows[:, :-1], windows[:, 1:]


@lru_cache(maxsize=2)
def _pass(
    seed: int, number: int, n_windows: int, n_tokens: int, context: int
) -> tuple[np.ndarray[Any, Any], int]:
    """Return the order of the windows of one pass, and where its first one starts."""
    generator = np.random.default_rng((seed, number))
    shift = int(generator.integers(min(context, n_tokens - n_windows * context + 1)))
    return generator.permutation(n_windows), shift


def prepare(config: DataConfig, vocab_size: int, directory: Path) -> Corpus:
    """Read, split and tokenise the text of `config` into `directory`, or reuse what is there."""
    documents = Documents(config.train, config.exclude)
    train: Iterable[Document] = documents
    valid: Iterable[Document] = Documents(config.valid, config.exclude)
    if config.valid_every is not None:
        train, valid = _split(documents, config.valid_every)
    inputs = {
        "train": _hash(train),
        "valid": _hash(valid),
        "tokenizer": f"BPE {vocab_size} {TOKENIZER_VERSION}",
    }
    if config.tokenizer is not None:
        inputs["tokenizer"] = fingerprint(load_tokenizer(Path(config.tokenizer)))
    if not _is_current(directory, inputs):  # made before from the same text, and whole
        _write(config, train, valid, vocab_size, directory, inputs)
    corpus = _open(directory, len(documents.skipped))
    needed = config.context + 1
    if len(corpus.train.tokens) < needed:
        raise ConfigError(
            f"training text has {len(corpus.train.tokens)} tokens but one window needs {needed}; "
            "add text or lower data.context"
        )
    return corpus


class _Split:
    """The documents whose name falls in, or out of, one of `every` equal parts of all names."""

    def __init__(self, documents: Documents, every: int, is_valid: bool) -> None:
        self.documents, self.every, self.is_valid = documents, every, is_valid

    def __iter__(self) -> Iterator[Document]:
        for document in self.documents:
            digest = hashlib.sha256(document.name.encode()).digest()
            if (int.from_bytes(digest[:8], "big") % self.every == 0) is self.is_valid:
                yield document


def _split(documents: Documents, every: int) -> tuple[_Split, _Split]:
    return _Split(documents, every, is_valid=False), _Split(documents, every, is_valid=True)


def _hash(documents: Iterable[Document]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        for part in (document.name.encode(), document.text.encode()):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def _is_current(directory: Path, inputs: dict[str, str]) -> bool:
    try:
        index = json.loads((directory / _INDEX).read_text(encoding="utf-8"))
        return index["inputs"] == inputs and all(
            (directory / name).stat().st_size == size for name, size in index["size_bytes"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def _write(
    config: DataConfig,
    train: Iterable[Document],
    valid: Iterable[Document],
    vocab_size: int,
    directory: Path,
    inputs: dict[str, str],
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _INDEX).unlink(missing_ok=True)
    if config.tokenizer is not None:
        tokenizer = load_tokenizer(Path(config.tokenizer))
    else:
        tokenizer = train_tokenizer((document.text for document in train), vocab_size)
    (directory / TOKENIZER).write_text(tokenizer.to_str(), encoding="utf-8")
    index: dict[str, Any] = {"inputs": inputs, "tokenizer_sha256": fingerprint(tokenizer)}
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
    for split, documents in (("train", train), ("valid", valid)):
        index[split] = _write_shard(directory / f"{split}.bin", tokenizer, documents, dtype)
        if index[split]["n_tokens"] == 0:
            remedy = "; lower data.valid_every" if split == "valid" and not config.valid else ""
            raise ConfigError(f"data: no text for the {split} split{remedy}")
    files = [directory / name for name in (TOKENIZER, "train.bin", "valid.bin")]
    index["size_bytes"] = {path.name: path.stat().st_size for path in files}
    partial = directory / f"{_INDEX}.partial"
    write_json(partial, index)
    for path in (*files, partial):
        flush(path)
    os.replace(partial, directory / _INDEX)


def _write_shard(
    path: Path,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    dtype: type[np.unsignedinteger[Any]],
) -> dict[str, Any]:
    end = end_token(tokenizer)
    n_tokens = n_bytes = 0
    texts = (document.text for document in documents)
    with path.open("wb") as file:
        while batch := list(islice(texts, _BATCH)):
            for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
                tokens = np.array([*encoding.ids, end], dtype=dtype)
                file.write(tokens.tobytes())
                n_tokens += len(tokens)
            n_bytes += sum(len(text.encode()) for text in batch)
    return {"n_tokens": n_tokens, "n_bytes": n_bytes, "dtype": np.dtype(dtype).name}


def _open(directory: Path, n_skipped: int) -> Corpus:
    index = json.loads((directory / _INDEX).read_text(encoding="utf-8"))
    shards = {
        split: Shard(
            np.memmap(directory / f"{split}.bin", dtype=index[split]["dtype"], mode="r"),
            index[split]["n_bytes"],
        )
        for split in ("train", "valid")
    }
    sha256 = hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()
    tokenizer = load_tokenizer(directory / TOKENIZER)
    return Corpus(tokenizer, shards["train"], shards["valid"], sha256, n_skipped)
