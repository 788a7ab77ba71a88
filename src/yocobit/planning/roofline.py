"""Roofline: placement of each part in memory, number of chips, and the bound on tokens/s.

A step takes at least the time of its memory traffic and at least that of its multiply-adds; the
larger one is the bound. Latency, traffic between chips and dequantisation do not count. If a model
needs several chips, they form a pipeline: a step passes through one chip after another and takes as
long as on one chip. With all chips busy, the throughput is multiplied by their number.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from yocobit.costs.work import Part, Prefill, Work
from yocobit.hardware.datasheets import Level, Machine


@dataclasses.dataclass(frozen=True)
class Place:
    """A part and the fastest memory level that holds it from one read to the next."""

    part: Part
    reuse_distance: int
    level: Level
    read_from: Level  # the level, or the next slower one with a known rate


@dataclasses.dataclass(frozen=True)
class Bound:
    """The roofline of a model on the fewest chips that hold it."""

    chips: int
    places: tuple[Place, ...]
    memory_s: float  # of a decode step through all chips
    arithmetic_s: float
    prefill_s: float  # of the whole context of one session, through all chips
    batch: int
    n_tokens: int  # of the prefill

    @property
    def is_memory_bound(self) -> bool:
        """Whether memory traffic, not arithmetic, limits the decode speed."""
        return self.memory_s >= self.arithmetic_s

    @property
    def step_s(self) -> float:
        """Time of a decode step; each chip is busy for its share of it."""
        return max(self.memory_s, self.arithmetic_s)

    @property
    def tokens_per_s(self) -> float:
        """Bound on the decode speed of the batch."""
        return self.batch / self.step_s

    @property
    def prefill_tokens_per_s(self) -> float:
        """Bound on the prefill speed."""
        return self.n_tokens / self.prefill_s

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "chips": self.chips,
            "decode_memory_s": self.memory_s,
            "decode_arithmetic_s": self.arithmetic_s,
            "decode_tokens_per_s": self.tokens_per_s,
            "decode_tokens_per_s_at_once": self.chips * self.tokens_per_s,
            "prefill_s": self.prefill_s,
            "prefill_tokens_per_s": self.prefill_tokens_per_s,
            "prefill_tokens_per_s_at_once": self.chips * self.prefill_tokens_per_s,
            "traffic_bytes_by_level": self.traffic_by_level(),
        }

    def traffic_by_level(self) -> dict[str, int]:
        """Return the memory traffic of a step by level."""
        found: dict[str, int] = {}
        for place in self.places:
            name = place.read_from.name
            found[name] = found.get(name, 0) + place.part.traffic_bytes
        return found


def bound(work: Work, machine: Machine) -> Bound:
    """Place a model on the fewest chips that hold it and compute the bound."""
    chips = chips_needed(work.n_bytes, machine)
    places = tuple(_place(part, work, machine, chips) for part in work.parts if part.traffic_bytes)
    return Bound(
        chips=chips,
        places=places,
        memory_s=sum(place.part.traffic_bytes / _rate(place.read_from) for place in places),
        arithmetic_s=sum(
            part.multiply_adds / multiply_adds_per_s(part, machine) for part in work.parts
        ),
        prefill_s=_prefill_s(work.prefill, work.early_bytes, machine),
        batch=work.batch,
        n_tokens=work.prefill.n_tokens,
    )


def chips_needed(n_bytes: int, machine: Machine) -> int:
    """Return the number of chips whose memory holds n_bytes."""
    return max(1, -(-n_bytes // machine.home.n_bytes))


def multiply_adds_per_s(work: Part | Prefill, machine: Machine) -> float:
    """Return the machine's rate for the arithmetic of a part or a prefill."""
    return machine.int8_per_s if work.is_integer else machine.float_per_s


def _place(part: Part, work: Work, machine: Machine, chips: int) -> Place:
    reuse = work.reuse_distance(part)
    levels = [level for level in machine.levels if chips * level.n_bytes >= reuse]
    levels = levels or [machine.home]  # reuse distances do not include embedding rows
    known = next(level for level in levels if level.bytes_per_s is not None)
    return Place(part, reuse, levels[0], known)


def _prefill_s(prefill: Prefill, early_bytes: int, machine: Machine) -> float:
    """Return the time on one chip: all multiply-adds, but at least one read of the weights."""
    matmuls = (prefill.early + prefill.late) / multiply_adds_per_s(prefill, machine)
    mixers = (prefill.attention + prefill.recurrent) / machine.float_per_s
    return max(matmuls + mixers, early_bytes / _rate(machine.home))


def _rate(level: Level) -> float:
    assert level.bytes_per_s is not None, level
    return level.bytes_per_s
