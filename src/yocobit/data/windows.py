"""Which window of which source comes when: pure functions of the seed and a window's number.

Nothing here grows with the text, so the position of a run in its data is a number of windows, and
any process can compute any window.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 1024  # windows in which each source has its share, to the nearest window

_ROUNDS = 6
_MASK = (1 << 64) - 1


def shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Return how many windows of a block each source has; at least one."""
    exact = np.array(weights, dtype=np.float64) / sum(weights) * BLOCK
    counts = np.maximum(1, np.floor(exact)).astype(int)
    while (missing := BLOCK - int(counts.sum())) > 0:
        counts[(exact - counts).argmax()] += 1
    for _ in range(-missing):  # because others have more than their due
        counts[np.where(counts > 1, counts - exact, -np.inf).argmax()] -= 1
    return tuple(counts.tolist())


def source_of(seed: int, index: int, counts: tuple[int, ...]) -> tuple[int, int]:
    """Return the source of window `index`, and how many windows before it were of that source."""
    if len(counts) == 1:
        return 0, index
    block, place = divmod(index, BLOCK)
    order, ranks = _block(seed, block, counts)
    source = int(order[place])
    return source, block * counts[source] + int(ranks[place])


def window_start(seed: int, source: int, number: int, n_tokens: int, context: int) -> int:
    """Return where window `number` of an endless shuffled pass over a source starts.

    The text is a ring. A pass cuts it into windows from a place of its own on, visits each once, in
    an order of its own, and leaves less than one window out.
    """
    n_windows = n_tokens // context
    number_of_pass, place = divmod(number, n_windows)
    *keys, shift = _keys(seed, source, number_of_pass)
    return (shift + shuffled(place, n_windows, keys) * context) % n_tokens


def shuffled(place: int, n: int, keys: Sequence[int]) -> int:
    """Return where a permutation of 0 to n - 1, chosen by `keys`, takes `place`.

    A Feistel network permutes the next 4^k numbers; what falls outside goes through it again.
    """
    bits = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = (1 << bits) - 1
    while True:
        left, right = place >> bits, place & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        place = left << bits | right
        if place < n:
            return place


def _mixed(x: int) -> int:
    """Return 64 bits, each of which depends on all of x (the finaliser of MurmurHash3)."""
    x = (x ^ x >> 33) * 0xFF51AFD7ED558CCD & _MASK
    x = (x ^ x >> 33) * 0xC4CEB9FE1A85EC53 & _MASK
    return x ^ x >> 33


@lru_cache(maxsize=256)
def _keys(seed: int, source: int, number_of_pass: int) -> tuple[int, ...]:
    """Return the keys of one pass and, last, its shift, before it is reduced to the text."""
    state = np.random.SeedSequence((seed, source, number_of_pass))
    return tuple(state.generate_state(_ROUNDS + 1, np.uint64).tolist())


@lru_cache(maxsize=16)
def _block(
    seed: int, block: int, counts: tuple[int, ...]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the source of each window of a block, and its rank among that source's there."""
    generator = np.random.default_rng((seed, block, len(counts)))
    order = generator.permutation(np.repeat(np.arange(len(counts)), counts))
    ranks = np.empty(BLOCK, dtype=np.int64)
    for source, count in enumerate(counts):
        ranks[order == source] = np.arange(count)
    return order, ranks
