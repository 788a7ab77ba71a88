"""The order of windows: shuffled passes over sources, as pure functions of a seed and an index.

The position of a run in its data is a number of windows, and any process can compute any window.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 1024  # windows; each source has its share of a block, rounded to whole windows

_ROUNDS = 6
_MASK = (1 << 64) - 1


def shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Return the number of windows of each source in a block; at least one."""
    exact = np.array(weights, dtype=np.float64) / sum(weights) * BLOCK
    counts = np.maximum(1, np.floor(exact)).astype(int)
    while (missing := BLOCK - int(counts.sum())) > 0:
        counts[(exact - counts).argmax()] += 1
    for _ in range(-missing):  # sources rounded up to one window take them from others
        counts[np.where(counts > 1, counts - exact, -np.inf).argmax()] -= 1
    return tuple(counts.tolist())


def source_of(seed: int, index: int, counts: tuple[int, ...]) -> tuple[int, int]:
    """Return the source of window `index` and the number of earlier windows of that source."""
    if len(counts) == 1:
        return 0, index
    block, position = divmod(index, BLOCK)
    order, ranks = _block(seed, block, counts)
    source = int(order[position])
    return source, block * counts[source] + int(ranks[position])


def window_start(seed: int, source: int, number: int, n_tokens: int, context: int) -> int:
    """Return the first token of window `number` in an endless sequence of passes over a source.

    The text is circular. Each pass divides it into windows from its own offset and visits each
    once, in its own order; less than one window is omitted.
    """
    n_windows = n_tokens // context
    number_of_pass, position = divmod(number, n_windows)
    *keys, offset = _keys(seed, source, number_of_pass)
    return (offset + shuffled(position, n_windows, keys) * context) % n_tokens


def shuffled(index: int, n: int, keys: Sequence[int]) -> int:
    """Return element `index` of the permutation of 0 to n - 1 that `keys` select.

    A Feistel network permutes 0 to 4^k - 1 >= n - 1; a result of n or more is permuted again.
    """
    bits = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = (1 << bits) - 1
    while True:
        left, right = index >> bits, index & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        index = left << bits | right
        if index < n:
            return index


def _mixed(x: int) -> int:
    """Return a 64-bit hash of x (the finaliser of MurmurHash3)."""
    x = (x ^ x >> 33) * 0xFF51AFD7ED558CCD & _MASK
    x = (x ^ x >> 33) * 0xC4CEB9FE1A85EC53 & _MASK
    return x ^ x >> 33


@lru_cache(maxsize=256)
def _keys(seed: int, source: int, number_of_pass: int) -> tuple[int, ...]:
    """Return the keys of one pass and, last, its offset, not yet reduced modulo the text."""
    state = np.random.SeedSequence((seed, source, number_of_pass))
    return tuple(state.generate_state(_ROUNDS + 1, np.uint64).tolist())


@lru_cache(maxsize=16)
def _block(
    seed: int, block: int, counts: tuple[int, ...]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the source of each window of a block, and its rank among those of that source."""
    generator = np.random.default_rng((seed, block, len(counts)))
    order = generator.permutation(np.repeat(np.arange(len(counts)), counts))
    ranks = np.empty(BLOCK, dtype=np.int64)
    for source, count in enumerate(counts):
        ranks[order == source] = np.arange(count)
    return order, ranks
