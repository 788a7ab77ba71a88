"""Measured limits of this host: read bandwidth and int8 multiply-adds per second.

Every run measures them, as they vary on a shared machine. The loops are native.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from yocobit import _native
from yocobit.hardware.host import Caches, available_bytes

_PASSES = 40
_PAGE = 4096
_SMALLEST_BUFFER, _LARGEST_BUFFER = 1 << 28, 1 << 31


@dataclasses.dataclass(frozen=True)
class Limits:
    """The highest measured rates for a number of threads."""

    threads: int
    dram_bytes_per_s: float
    last_level_bytes_per_s: float
    multiply_adds_per_s: dict[str, float]  # int8, by instruction

    @property
    def instruction(self) -> str:
        """The instruction with the highest int8 rate."""
        return max(self.multiply_adds_per_s, key=lambda name: self.multiply_adds_per_s[name])

    @property
    def int8_per_s(self) -> float:
        """The highest int8 rate, in multiply-adds per second."""
        return self.multiply_adds_per_s[self.instruction]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**dataclasses.asdict(self), "instruction": self.instruction}


def best(rounds: Sequence[Limits]) -> Limits:
    """Return the maximum of each rate over rounds."""
    return Limits(
        rounds[0].threads,
        max(limits.dram_bytes_per_s for limits in rounds),
        max(limits.last_level_bytes_per_s for limits in rounds),
        {
            name: max(limits.multiply_adds_per_s[name] for limits in rounds)
            for name in rounds[0].multiply_adds_per_s
        },
    )


def measure_limits(threads: int, cpus: list[int], caches: Caches) -> Limits:
    """Measure with `threads` threads, each pinned to one of `cpus`; takes about half a second."""
    pinned = [cpus[i % len(cpus)] for i in range(threads)]
    dram, last_level = buffer_bytes(threads, caches, available_bytes())
    return Limits(
        threads,
        _native.read_bytes_per_s(pinned, dram, _PASSES),
        _native.read_bytes_per_s(pinned, last_level, _PASSES),
        {
            name: _native.multiply_adds_per_s(name, pinned, _PASSES)
            for name in _native.multiply_add_instructions()
        },
    )


def buffer_bytes(threads: int, caches: Caches, available: int | None) -> tuple[int, int]:
    """Return each thread's buffer sizes for the DRAM and the last-level cache measurements.

    The DRAM buffers are 16 times the last-level cache in total, within bounds and a quarter of the
    available memory, so that hardly any of it stays cached. A last-level buffer is half of a
    thread's share of that cache, but at least twice the L2 cache.
    """
    largest = _LARGEST_BUFFER if available is None else min(_LARGEST_BUFFER, available // 4)
    dram = min(max(16 * caches.last_bytes, _SMALLEST_BUFFER), largest)
    share = caches.last_bytes // min(threads, max(1, caches.last_shared_by))
    last_level = max(share // 2, 2 * caches.l2_bytes)
    return _whole_pages(dram // threads), _whole_pages(last_level)


def _whole_pages(size: int) -> int:
    return max(size // _PAGE, 1) * _PAGE
