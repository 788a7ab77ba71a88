"""Slow sequences: their own work in a step, such as a grammar's, would slow down other sequences.

While others run, at most one slow sequence is decoded in a step, in rotation, for at most
1 / SLOW_SHARE of the time. The tokens of a sequence do not depend on the steps that decode it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from yocobit.serving.runtime.sequence import Sequence, SequenceGroup

SLOW_S = 0.002  # CPU time of a sequence in a step, without the engine's
SLOW_SHARE = 5

Decoding = list[tuple[SequenceGroup, Sequence]]


class SlowSequences:
    """Measures the CPU time of sequences in steps, and schedules the slow ones in rotation."""

    def __init__(self) -> None:
        self._next_at = 0.0
        self._is_timed = True

    @property
    def clock(self) -> Callable[[], float]:
        """The clock that measures each sequence in this step.

        It runs only after a step in which all sequences together took SLOW_S: reading it is a
        system call.
        """
        return time.thread_time if self._is_timed else _no_time

    def choose(self, decoding: Decoding, is_shared: bool) -> Decoding:
        """Return the sequences to decode in this step, at most one slow one among them.

        A slow one waits while it would slow down others: sequences that are not slow, or prefills
        if `is_shared`.
        """
        slow = [each for each in decoding if each[1].step_s > SLOW_S]
        if not slow:
            return decoding
        others = [each for each in decoding if each[1].step_s <= SLOW_S]
        if (others or is_shared) and time.monotonic() < self._next_at:
            return others
        return [*others, min(slow, key=lambda each: each[1].stepped_at)]

    def record(self, sequence: Sequence) -> None:
        """Have the next slow sequence wait if this one, whose step is complete, was slow."""
        if sequence.step_s > SLOW_S:
            sequence.stepped_at = time.monotonic()
            self._next_at = sequence.stepped_at + (SLOW_SHARE - 1) * sequence.step_s

    def end_step(self, total_s: float, running: Iterable[SequenceGroup]) -> None:
        """End a step in which all sequences together took `total_s` of CPU time."""
        self._is_timed = total_s > SLOW_S or any(
            sequence.step_s > SLOW_S for group in running for sequence in group.sequences
        )


def _no_time() -> float:
    return 0.0
