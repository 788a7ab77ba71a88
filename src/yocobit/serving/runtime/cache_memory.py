"""The cache memory of running requests, which they reserve in blocks of positions.

A session's buffers are virtual memory of its full length, which the system commits page by page as
positions arrive. So a request reserves the memory of its positions so far, in blocks of GROWTH.
Which request is preempted if a block does not fit is the scheduler's decision.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from yocobit.config import ModelConfig
from yocobit.costs import committed_bytes
from yocobit.engine.session import CacheType
from yocobit.hardware.host import trim_heap
from yocobit.serving.runtime.sequence import SequenceGroup

GROWTH = 64  # positions that a sequence reserves at a time
# Freed buffers below a megabyte stay in the heap; they are returned to the system after this part
# of the cache memory was freed.
TRIM_SHARE = 8


class CacheMemory:
    """The KV caches and states of running requests, at most `n_bytes` of them."""

    def __init__(self, config: ModelConfig, cache: CacheType, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        self.reserved_bytes = 0
        self._freed_bytes = 0  # since the heap was trimmed
        self._committed_bytes = functools.lru_cache(1 << 12)(
            functools.partial(committed_bytes, config, cache)
        )

    def fits(self, group: SequenceGroup, running: Sequence[SequenceGroup]) -> bool:
        """Whether the first blocks of a request fit next to the running ones.

        If others run, all must have room for one more block: otherwise a preempted request would
        be prefilled only to be preempted again.
        """
        n_tokens = _tokens_to_reserve(group)
        if not running:
            return self._size(group, n_tokens) <= self.n_bytes
        if self.reserved_bytes + self._size(group, n_tokens) > self.n_bytes:
            return False  # the usual case with full memory, at less cost than the sum below
        grown = [(each, each.reserved_tokens + GROWTH) for each in running]
        grown.append((group, n_tokens + GROWTH))
        return sum(self._size(*each) for each in grown) <= self.n_bytes

    def has_room_to_grow(self, group: SequenceGroup) -> bool:
        """Whether the blocks that a running request needs for its next step fit."""
        n_bytes = self._size(group, _tokens_to_reserve(group)) - group.reserved_bytes
        return self.reserved_bytes + n_bytes <= self.n_bytes

    def reserve(self, group: SequenceGroup) -> None:
        """Reserve the blocks that a request needs for its next step."""
        n_tokens = _tokens_to_reserve(group)
        n_bytes = self._size(group, n_tokens)
        self.reserved_bytes += n_bytes - group.reserved_bytes
        group.reserved_tokens, group.reserved_bytes = n_tokens, n_bytes

    def free(self, group: SequenceGroup) -> None:
        """Subtract the memory of a request whose sessions were released."""
        self.reserved_bytes -= group.reserved_bytes
        self._freed_bytes += group.reserved_bytes
        group.reserved_tokens = group.reserved_bytes = 0
        if TRIM_SHARE * self._freed_bytes > self.n_bytes:
            self._freed_bytes = 0
            trim_heap()

    def _size(self, group: SequenceGroup, n_tokens: int) -> int:
        """Return the bytes of n_tokens positions of each choice."""
        most = group.request.n_tokens
        each = self._committed_bytes(min(n_tokens, most), most)
        return len(group.request.sampling) * each


def is_full(group: SequenceGroup) -> bool:
    """Whether a running request has reached the end of its blocks."""
    return group.n_positions >= group.reserved_tokens


def _tokens_to_reserve(group: SequenceGroup) -> int:
    """Return the positions of each choice that a request needs for its next step, in blocks."""
    n_blocks = group.n_positions // GROWTH + 1
    return min(n_blocks * GROWTH, group.request.n_tokens)
