"""What gives tokens their probability: the native engine, or the PyTorch model.

Letters: T tokens   V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from yocobit.config import ConfigError
from yocobit.engine import Engine
from yocobit.engine.session import CacheType, Logits
from yocobit.packing import is_packed

Backend = Literal["native", "torch"]
Nats = NDArray[np.float64]

# Tokens whose logits are in memory at once.
PIECE = 64


class Scorer(Protocol):
    """A model that predicts tokens."""

    backend: Backend
    begin: int  # the token that begins a document

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, as in training: one that spells a token is only text."""

    def nats(self, tokens: Sequence[int], n_seen: int) -> Nats:
        """Return -log p of tokens[n_seen:] of (T,), each given all before it; n_seen >= 1."""


def open_scorer(
    path: Path,
    backend: Backend | None = None,
    threads: int | None = None,
    cache: CacheType | None = None,
    attention: str | None = None,
) -> Scorer:
    """Open a packed model ("native") or a run, a checkpoint or a transformers model ("torch").

    `backend` is what fits `path` unless given; `cache` (f32 unless given) and `attention` (the
    model's own) are the engine's.
    ConfigError for what is not there or of the other kind, PackedModelError for a bad model.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such packed model, run or checkpoint")
    if backend is None:
        backend = "native" if is_packed(path) else "torch"
    if backend == "native":
        engine = Engine.load(path, threads=threads, attention=attention)
        return NativeScorer(engine, cache or "f32")
    if cache is not None:
        raise ConfigError(f"cache must not be given with PyTorch, which has none, but is {cache!r}")
    if attention is not None:
        raise ConfigError(
            f"attention must not be given with PyTorch, which has the model's, but is {attention!r}"
        )
    if is_packed(path):
        raise ConfigError(
            f"{path}: is a packed model, which only the native backend runs; for PyTorch name the "
            "run or checkpoint that it was packed from"
        )
    from yocobit.evaluation.pytorch import TorchScorer

    return TorchScorer(path, threads)


class NativeScorer:
    """Scores with the engine, as it serves."""

    backend: Backend = "native"

    def __init__(self, engine: Engine, cache: CacheType = "f32") -> None:
        self._engine, self._cache = engine, cache
        begin = engine.generation_config.get("bos_token_id")
        if begin is None:
            raise ConfigError(
                f"{engine.model.path}: must say in generation_config.json what begins a document "
                "but has no bos_token_id"
            )
        self.begin = int(begin)
        self._tokenizer = as_in_training(engine.tokenizer)

    def encode(self, text: str) -> list[int]:
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return tokens

    def nats(self, tokens: Sequence[int], n_seen: int) -> Nats:
        pieces = [nats for nats, _ in self.pieces(tokens, n_seen)]
        return np.concatenate([np.empty(0), *pieces])

    def pieces(self, tokens: Sequence[int], n_seen: int) -> Iterator[tuple[Nats, NDArray[Any]]]:
        """Score tokens[n_seen:] in pieces of at most PIECE: -log p, and the likeliest instead."""
        n_inputs = len(tokens) - 1
        if n_inputs < n_seen:
            return
        session = self._engine.session(n_inputs, self._cache)
        if n_seen > 1:
            session.feed(tokens[: n_seen - 1])  # the cross-decoder runs for one of them only
        logits = np.empty((min(PIECE, n_inputs), self._engine.config.vocab_size), np.float32)
        for begin in range(n_seen - 1, n_inputs, PIECE):
            inputs = tokens[begin : min(begin + PIECE, n_inputs)]
            targets = np.asarray(tokens[begin + 1 : begin + 1 + len(inputs)])
            rows = session.feed_all(inputs, out=logits[: len(inputs)])
            yield negative_log_likelihood(rows, targets), rows.argmax(axis=1)


def negative_log_likelihood(logits: Logits, targets: NDArray[Any]) -> Nats:
    """Return -log softmax(logits)[target] of logits (T, V) and targets (T,)."""
    largest = logits.max(axis=1)
    # Exponents in float32: the sum of V terms of relative error 1e-7 has no larger one.
    total = np.exp(logits - largest[:, None]).sum(axis=1, dtype=np.float64)
    found = logits[np.arange(len(targets)), targets]
    nats: Nats = np.log(total) + (largest.astype(np.float64) - found)
    return nats


def as_in_training(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy that takes special tokens in a text for text."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.encode_special_tokens = True
    return copy
