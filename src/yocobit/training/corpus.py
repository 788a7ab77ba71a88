"""The corpus of a run: what training and validation read, as windows of tokens.

Letters: B batch   T positions
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from yocobit.config import ConfigError
from yocobit.data.chat import CHAT_TEMPLATE
from yocobit.data.config import DataConfig, sources
from yocobit.data.preparation import INDEX, TOKENIZER, made_index
from yocobit.data.shards import Tokens
from yocobit.data.sources import describe_unread
from yocobit.data.tokenizer import end_token, load_tokenizer
from yocobit.data.windows import shares, source_of, window_start

IGNORED = -1  # the target of a position where no loss is taken


@dataclass(frozen=True)
class Batch:
    """Windows of text: documents laid end to end, each ending with the end token.

    A position whose input is the end token begins the next document and sees nothing before it.
    """

    inputs: Tensor  # (B, T)
    targets: Tensor  # (B, T), or IGNORED
    resets: Tensor  # (B, T) bool

    @classmethod
    def of(cls, inputs: NDArray[np.int64], targets: NDArray[np.int64], end: int) -> Batch:
        """Make a batch of inputs (B, T) and targets (B, T), where `end` is the end token."""
        return cls(
            torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(inputs == end)
        )


@dataclass(frozen=True)
class Corpus:
    """The tokens of each source and of the validation text; `sha256` is of all that made them."""

    tokenizer: Tokenizer
    train: tuple[Tokens, ...]
    weights: tuple[float, ...]  # of the sources
    valid: Tokens
    sha256: str
    n_skipped: int = 0  # .py files that are not UTF-8
    n_duplicates: int = 0  # documents left out
    unread: Mapping[str, int] = field(default_factory=dict)  # other files, by suffix

    @property
    def chat_template(self) -> str | None:
        """The template of the conversations in the training text, if it has any."""
        return CHAT_TEMPLATE if any(tokens.has_mask for tokens in self.train) else None

    def batch(self, seed: int, first: int, size: int, context: int) -> Batch:
        """Return windows `first` to `first + size` of endless shuffled passes over the sources.

        Each source has its weight's share of the windows and passes of its own, in which no two
        windows overlap. A pure function of its arguments.
        """
        counts = shares(self.weights)
        windows = []
        for index in range(first, first + size):
            source, number = source_of(seed, index, counts)
            tokens = self.train[source]
            start = window_start(seed, source, number, len(tokens), context)
            windows.append(_window(tokens, start, context))
        inputs, targets = (np.stack(part) for part in zip(*windows, strict=True))
        return Batch.of(inputs, targets, end_token(self.tokenizer))

    def describe(self) -> list[str]:
        """Return lines that say how much there is of what."""
        lines = []
        for name, tokens, share in zip(
            self._names(), self.train, shares(self.weights), strict=True
        ):
            part = (
                f", {share / sum(shares(self.weights)):.1%} of windows"
                if len(self.train) > 1
                else ""
            )
            lines.append(f"{name} {_amount(tokens)}{part}")
        lines.append(f"valid {_amount(self.valid)}; vocabulary {self.tokenizer.get_vocab_size():,}")
        if self.n_skipped:
            lines.append(f"skipped {self.n_skipped} .py files that are not UTF-8")
        if self.unread:
            lines.append(describe_unread(self.unread))
        if self.n_duplicates:
            lines.append(f"left out {self.n_duplicates:,} documents that are there already")
        return lines

    def _names(self) -> list[str]:
        return (
            ["train"] if len(self.train) == 1 else [f"train[{i}]" for i in range(len(self.train))]
        )


def prepare(config: DataConfig, vocab_size: int, directory: Path) -> Corpus:
    """Read, split and tokenise the text of `config` into `directory`, or reuse what is there."""
    index = made_index(config, vocab_size, directory)
    weights = tuple(source.weight or 1.0 for source in sources(config.train))
    weights = weights if len(index["train"]) > 1 else (1.0,)
    for i, entry in enumerate(index["train"]):
        if entry["tokens"] < config.context:
            which = f"train[{i}]" if len(index["train"]) > 1 else "training text"
            raise ConfigError(
                f"{which} has {entry['tokens']} tokens but one window needs {config.context}; "
                "add text or lower data.context"
            )
    identity = json.dumps([index["inputs"], index["tokenizer_sha256"], weights], sort_keys=True)
    return Corpus(
        load_tokenizer(directory / TOKENIZER),
        tuple(Tokens(directory, entry) for entry in index["train"]),
        weights,
        Tokens(directory, index["valid"]),
        hashlib.sha256(identity.encode()).hexdigest(),
        index["n_skipped"],
        index["n_duplicates"],
        index["unread"],
    )


def open_valid(directory: Path) -> tuple[Tokenizer, Tokens]:
    """Return tokenizer and validation text of what was prepared in a directory."""
    index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
    return load_tokenizer(directory / TOKENIZER), Tokens(directory, index["valid"])


def _window(
    tokens: Tokens, start: int, context: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return inputs (T,) and targets (T,), the first of them token `start`.

    The text is a ring: its last token, an end, is what its first is predicted from.
    """
    window = _around(tokens.read, start - 1, context + 1, len(tokens))
    inputs, targets = window[:-1], window[1:]
    if tokens.has_mask:
        is_scored = _around(tokens.is_scored, start, context, len(tokens))
        targets = np.where(is_scored, targets, IGNORED)
    return inputs, targets


def _around(
    read: Callable[[int, int], NDArray[Any]], begin: int, n: int, size: int
) -> NDArray[Any]:
    begin %= size
    if begin + n <= size:
        return read(begin, begin + n)
    return np.concatenate([read(begin, size), read(0, begin + n - size)])


def _amount(tokens: Tokens) -> str:
    learnt = f", {tokens.n_scored:,} of them learnt" if tokens.has_mask else ""
    return f"{tokens.n_bytes / 1e6:.2f} MB, {len(tokens):,} tokens{learnt}"
