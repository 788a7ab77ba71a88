"""The corpus of a run: tokens of the training sources and of the validation text, without torch.

RUN/data/ has tokenizer.json, the shards, and index.json (index.py), which is written last: the
identity of the corpus that the shards were made from (identity.py), and the number of tokens, bytes
and documents in each. The shards are reused while the identity is the same. Files are read once to
hash them, in part to train a tokenizer, and once to tokenise them; files with the size and the
modification time in the index are not hashed again. One process prepares a directory at a time.

Letters: B batch   T positions
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from yocobit.config import ConfigError
from yocobit.data.config import DataConfig, sources
from yocobit.data.conversations import CHAT_TEMPLATE
from yocobit.data.held_out import HeldOut
from yocobit.data.identity import CorpusFiles, identify, is_same_corpus
from yocobit.data.index import INDEX, TOKENIZER, Index
from yocobit.data.shards import Tokens, check_intact
from yocobit.data.sources import cacheable, check_unchanged, describe_ignored, hash_files
from yocobit.data.tokenization import tokenize
from yocobit.data.tokenizer import load_tokenizer
from yocobit.data.windows import shares, source_of, window_start
from yocobit.system import CAN_OPEN_DIRECTORIES, lock
from yocobit.text import n_ids

IGNORED = -1  # the target of a position that is not in the loss

Windows = NDArray[np.int64]


def prepare(
    config: DataConfig,
    vocab_size: int,
    directory: Path,
    verify: bool = True,
    progress: Callable[[int, int], object] | None = None,
) -> Corpus:
    """Open the corpus of `config` in `directory`; tokenise it first if missing or outdated.

    With `verify`, shards that are reused are compared with their hashes. `progress` receives the
    bytes of text that were tokenised, and of all files.
    """
    files = CorpusFiles.of(config)
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory):
        index, notes = _read_index(directory)
        before = None if index is None else index.known
        hashes = hash_files(files.all, before or {})
        held_out = HeldOut.of(files)
        identity = identify(config, vocab_size, files, hashes)
        if held_out.cuts is not None:
            identity["held_out_from"] = list(held_out.cuts)
        is_same = index is not None and is_same_corpus(index.inputs, identity)
        if index is None or not is_same or not index.has_files(directory):
            (directory / INDEX).unlink(missing_ok=True)
            entries = tokenize(config, files, held_out, vocab_size, directory, progress)
            check_unchanged(files.all)
            index, before = Index(inputs=identity, **entries), None
        elif verify:
            check_intact(directory, index.hashes)
        index.known = cacheable(hashes)
        if index.known != before:
            index.write(directory)
        _check_lengths(index, config.context)
        notes = (*notes, *held_out.describe(), *_warnings(config, files))
        return Corpus.open(directory, index, config, files.ignored, notes)


@dataclass(frozen=True)
class Corpus:
    """Tokens of each source and of the validation text; `sha256` identifies all of them."""

    tokenizer: Tokenizer
    train: tuple[Tokens, ...]
    weights: tuple[float, ...]  # of the sources
    valid: Tokens
    sha256: str
    n_skipped: int = 0  # .py files that are not UTF-8
    n_duplicates: int = 0  # documents omitted by data.deduplicate
    ignored: Mapping[str, int] = field(default_factory=dict)  # files of other kinds, by suffix
    notes: tuple[str, ...] = ()  # on the preparation

    @classmethod
    def open(
        cls,
        directory: Path,
        index: Index,
        config: DataConfig,
        ignored: Mapping[str, int],
        notes: tuple[str, ...],
    ) -> Corpus:
        """Open the shards of an index."""
        weights = tuple(source.weight or 1.0 for source in sources(config.train))
        weights = weights if len(index.train) > 1 else (1.0,)
        identity = [index.inputs, index.tokenizer_sha256, weights]
        tokenizer = load_tokenizer(directory / TOKENIZER)
        vocab_size = n_ids(tokenizer)
        return cls(
            tokenizer,
            tuple(Tokens(directory, shards, vocab_size) for shards in index.train),
            weights,
            Tokens(directory, index.valid, vocab_size),
            hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
            index.n_skipped,
            index.n_duplicates,
            ignored,
            notes,
        )

    @property
    def chat_template(self) -> str | None:
        """The chat template, if the training text has conversations."""
        return CHAT_TEMPLATE if any(tokens.has_mask for tokens in self.train) else None

    def windows(self, seed: int, first: int, size: int, context: int) -> tuple[Windows, Windows]:
        """Return inputs (B, T) and targets (B, T) of windows `first` to `first + size`.

        They are from an endless sequence of shuffled passes over the sources. Each source has its
        share of windows by weight and its own passes, in which no two windows overlap. The result
        depends on the arguments only.
        """
        counts = shares(self.weights)
        windows = []
        for index in range(first, first + size):
            source, number = source_of(seed, index, counts)
            tokens = self.train[source]
            start = window_start(seed, source, number, len(tokens), context)
            windows.append(_window(tokens, start, context))
        inputs, targets = (np.stack(part) for part in zip(*windows, strict=True))
        return inputs, targets

    def describe(self) -> list[str]:
        """Return lines about the size of each source and about omitted files and documents."""
        counts = shares(self.weights)
        lines = [*self.notes]
        for i, (tokens, count) in enumerate(zip(self.train, counts, strict=True)):
            name, part = "train", ""
            if len(self.train) > 1:
                name, part = f"train[{i}]", f", {count / sum(counts):.1%} of windows"
            lines.append(f"{name} {_size(tokens)}{part}")
        lines.append(f"valid {_size(self.valid)}; vocabulary {self.tokenizer.get_vocab_size():,}")
        if self.n_skipped:
            lines.append(f"skipped {self.n_skipped} .py files that are not UTF-8")
        if self.ignored:
            lines.append(describe_ignored(self.ignored))
        if self.n_duplicates:
            lines.append(f"omitted {self.n_duplicates:,} duplicate documents")
        return lines


def open_valid(directory: Path) -> tuple[Tokenizer, Tokens]:
    """Open tokenizer and validation text of a prepared corpus."""
    if (index := Index.read(directory)) is None:
        raise ConfigError(f"{directory / INDEX}: no such file")
    tokenizer = load_tokenizer(directory / TOKENIZER)
    return tokenizer, Tokens(directory, index.valid, n_ids(tokenizer))


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Lock a directory, after any other process that prepares a corpus in it has finished."""
    if not CAN_OPEN_DIRECTORIES:
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # NFS cannot lock a directory
            lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def _read_index(directory: Path) -> tuple[Index | None, tuple[str, ...]]:
    """Return the index of a directory, if it has an intact one, and a line about a damaged one."""
    try:
        return Index.read(directory), ()
    except ConfigError as error:
        return None, (f"warning: {error}; the corpus is prepared again",)


def _warnings(config: DataConfig, files: CorpusFiles) -> Iterator[str]:
    if (n := files.in_both()) and not config.deduplicate:
        subject = "1 file is" if n == 1 else f"{n:,} files are"
        yield (
            f"warning: {subject} read for both training and validation, so the measured bits per "
            "byte are too low; add data.exclude, or set data.deduplicate = true"
        )


def _check_lengths(index: Index, context: int) -> None:
    for i, shards in enumerate(index.train):
        if shards.tokens < context:
            subject = f"train[{i}]" if len(index.train) > 1 else "training text"
            raise ConfigError(
                f"{subject} has {shards.tokens} tokens but one window needs {context}; "
                "add text or lower data.context"
            )


def _window(tokens: Tokens, start: int, context: int) -> tuple[Windows, Windows]:
    """Return inputs (T,) and targets (T,), the first of them token `start`.

    The text is circular: its last token, an EOS token, is the input that predicts its first.
    """
    window = _read_circular(tokens.read, start - 1, context + 1, len(tokens))
    inputs, targets = window[:-1], window[1:]
    if tokens.has_mask:
        loss_mask = _read_circular(tokens.loss_mask, start, context, len(tokens))
        targets = np.where(loss_mask, targets, IGNORED)
    return inputs, targets


def _read_circular(
    read: Callable[[int, int], NDArray[Any]], start: int, n: int, size: int
) -> NDArray[Any]:
    start %= size
    if start + n <= size:
        return read(start, start + n)
    return np.concatenate([read(start, size), read(0, start + n - size)])


def _size(tokens: Tokens) -> str:
    in_loss = f", {tokens.n_in_loss:,} of them in the loss" if tokens.has_mask else ""
    n = tokens.n_bytes
    size = f"{n / 1e6:.2f} MB" if n >= 1e5 else f"{n / 1e3:.2f} kB"
    return f"{size}, {len(tokens):,} tokens{in_loss}"
