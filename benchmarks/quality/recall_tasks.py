"""Synthetic recall tasks, whose answers occur earlier in the text.

    associative recall   k1 v1 k2 v2 ... . . k2 . k7 . .     after a key: its value (MQAR,
                         arXiv:2312.04927); each key is queried once, anywhere in the filler
    passkey              . . ! a b c d e . . . . ! a b c d   after the mark: the key seen before

Targets are -1 at positions without a query.

Letters: B batch   T positions   P pairs
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]

MARK = 0
FILLERS, KEYS, VALUES = range(1, 64), range(64, 160), range(160, 256)
VOCAB_SIZE = 256
PASSKEY_LENGTH = 5


def associative_recall(
    rng: np.random.Generator, batch: int, length: int, n_pairs: int
) -> tuple[Tokens, Tokens]:
    """Return tokens and targets (B, T): n_pairs pairs, then as many queries among filler."""
    if not 1 <= n_pairs <= min(len(KEYS), length // 3):
        raise ValueError(f"n_pairs must be 1 to {min(len(KEYS), length // 3)} but is {n_pairs}")
    tokens = rng.integers(FILLERS.start, FILLERS.stop, (batch, length))
    targets = np.full((batch, length), -1)
    keys = KEYS.start + _sample_rows(rng, batch, len(KEYS), n_pairs)  # (B, P), all different
    values = rng.integers(VALUES.start, VALUES.stop, (batch, n_pairs))
    tokens[:, 0 : 2 * n_pairs : 2] = keys
    tokens[:, 1 : 2 * n_pairs : 2] = values
    queries = 2 * n_pairs + _sample_rows(rng, batch, length - 2 * n_pairs, n_pairs)
    np.put_along_axis(tokens, queries, keys, axis=1)
    np.put_along_axis(targets, queries, values, axis=1)
    return tokens, targets


def passkey(rng: np.random.Generator, batch: int, length: int) -> tuple[Tokens, Tokens]:
    """Return tokens and targets (B, T): a key somewhere in the filler, queried at the end."""
    n = PASSKEY_LENGTH
    shortest = 2 * n + 1
    if length < shortest:
        raise ValueError(f"length must be at least {shortest} but is {length}")
    tokens = rng.integers(FILLERS.start, FILLERS.stop, (batch, length))
    targets = np.full((batch, length), -1)
    key = rng.integers(VALUES.start, VALUES.stop, (batch, n))
    first = rng.integers(0, length - shortest + 1, (batch, 1))
    np.put_along_axis(tokens, first, MARK, axis=1)
    np.put_along_axis(tokens, first + 1 + np.arange(n), key, axis=1)
    tokens[:, -n] = MARK
    tokens[:, length - n + 1 :] = key[:, :-1]
    targets[:, -n:] = key
    return tokens, targets


def _sample_rows(rng: np.random.Generator, batch: int, n: int, count: int) -> Tokens:
    """Return `count` distinct random numbers below n for each row, (batch, count)."""
    return rng.random((batch, n)).argsort(axis=1)[:, :count]
