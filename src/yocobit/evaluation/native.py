"""Scoring with the native engine.

Letters: T tokens   V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yocobit.config import ConfigError
from yocobit.engine import Engine
from yocobit.engine.session import CacheType, Logits
from yocobit.evaluation.scorer import CHUNK, Backend, Nats, Scorer


class NativeScorer(Scorer):
    """Scores with the engine: its logits are those of serving."""

    backend: Backend = "native"

    def __init__(self, engine: Engine, cache: CacheType = "f32") -> None:
        self._engine, self._cache = engine, cache
        self.bos_token = _first_token(engine)

    def encode(self, text: str) -> list[int]:
        return self._engine.encoder.encode(text)

    def encode_pieces(self, pieces: Iterable[str]) -> Iterator[Sequence[int]]:
        return self._engine.encoder.encode_pieces(pieces)

    def nats(self, tokens: Sequence[int], n_context: int) -> Nats:
        chunks = [nats for nats, _ in self.chunks(tokens, n_context)]
        return np.concatenate([np.empty(0), *chunks])

    def chunks(self, tokens: Sequence[int], n_context: int) -> Iterator[tuple[Nats, NDArray[Any]]]:
        """Score tokens[n_context:] in chunks of at most CHUNK: yield -log p and the argmax."""
        n_inputs = len(tokens) - 1
        if n_inputs < n_context:
            return
        session = self._engine.session(n_inputs, self._cache)
        if n_context > 1:
            session.feed(tokens[: n_context - 1])  # early exit: no logits of the context
        logits = np.empty((min(CHUNK, n_inputs), self._engine.config.vocab_size), np.float32)
        for start in range(n_context - 1, n_inputs, CHUNK):
            inputs = tokens[start : min(start + CHUNK, n_inputs)]
            targets = np.asarray(tokens[start + 1 : start + 1 + len(inputs)])
            rows = session.feed_all(inputs, out=logits[: len(inputs)])
            yield negative_log_likelihood(rows, targets), rows.argmax(axis=1)


def _first_token(engine: Engine) -> int:
    """Return the token that precedes a document, as in the harness's model "hf".

    That is the BOS token, or without one the first EOS token: in training it ended the previous
    document.
    """
    end = engine.generation_config.get("eos_token_id")
    candidates = [engine.bos_token, *(end if isinstance(end, list) else [end])]
    token = next((token for token in candidates if token is not None), None)
    if token is None:
        raise ConfigError(
            f"{engine.model.path}: generation_config.json must have a bos_token_id or an "
            "eos_token_id, which precedes a document, but has neither; add one"
        )
    return int(token)


def negative_log_likelihood(logits: Logits, targets: NDArray[Any]) -> Nats:
    """Return -log softmax(logits)[target] of logits (T, V) and targets (T,)."""
    with np.errstate(invalid="ignore", over="ignore"):  # of infinite logits the result is NaN
        largest = logits.max(axis=1)
        # Exponentials in float32: their sum has the relative error of each, 1e-7.
        total = np.exp(logits - largest[:, None]).sum(axis=1, dtype=np.float64)
        target_logits = logits[np.arange(len(targets)), targets]
        nats: Nats = np.log(total) + (largest.astype(np.float64) - target_logits)
    return nats
