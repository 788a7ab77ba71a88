"""What a machine allows at most: where each part is kept, how many chips, how many tokens a second.

A step takes at least as long as its bytes need from where they lie, and at least as long as its
multiply-adds; the larger is the bound. Nothing else is counted: no latency, no traffic between
chips, no unpacking of weights. Where several chips hold a model, a step passes through them in
turn: its time is that of one chip. All of them at work, on a step each or on one together, do as
many times as much as there are chips.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from yocobit.costs.work import Part, Prefill, Work
from yocobit.hardware.datasheets import Level, Machine


@dataclasses.dataclass(frozen=True)
class Place:
    """A part, and the fastest level that keeps it from one read to the next."""

    part: Part
    reuse_bytes: int
    level: Level
    read_from: Level  # the level, or the next one with a known rate


@dataclasses.dataclass(frozen=True)
class Bound:
    """What a machine allows a model at most, on as few chips as hold it."""

    chips: int
    places: tuple[Place, ...]
    memory_s: float  # of a decode step that passes through the chips one after the other
    arithmetic_s: float
    prefill_s: float  # of the whole context of one session, likewise
    batch: int
    n_tokens: int  # of the prefill

    @property
    def is_memory_bound(self) -> bool:
        return self.memory_s >= self.arithmetic_s

    @property
    def step_s(self) -> float:
        """Time of a decode step; a chip is at work for its share of it, and free for others."""
        return max(self.memory_s, self.arithmetic_s)

    @property
    def tokens_per_s(self) -> float:
        return self.batch / self.step_s

    @property
    def prefill_tokens_per_s(self) -> float:
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
            "read_bytes_by_level": self.read_bytes_by_level(),
        }

    def read_bytes_by_level(self) -> dict[str, int]:
        """Return the bytes that a step reads from each level."""
        found: dict[str, int] = {}
        for place in self.places:
            name = place.read_from.name
            found[name] = found.get(name, 0) + place.part.read_bytes
        return found


def bound(work: Work, machine: Machine) -> Bound:
    """Place a model on as few chips of a machine as hold it, and compute what they allow."""
    chips = chips_needed(work.n_bytes, machine)
    places = tuple(_place(part, work, machine, chips) for part in work.parts if part.read_bytes)
    return Bound(
        chips=chips,
        places=places,
        memory_s=sum(place.part.read_bytes / _rate(place.read_from) for place in places),
        arithmetic_s=sum(part.multiply_adds / products_per_s(part, machine) for part in work.parts),
        prefill_s=_prefill_s(work.prefill, work.early_bytes, machine),
        batch=work.batch,
        n_tokens=work.prefill.n_tokens,
    )


def chips_needed(n_bytes: int, machine: Machine) -> int:
    """Return how many chips' memory holds so many bytes."""
    return max(1, -(-n_bytes // machine.home.n_bytes))


def products_per_s(work: Part | Prefill, machine: Machine) -> float:
    return machine.int8_per_s if work.is_integer else machine.float_per_s


def _place(part: Part, work: Work, machine: Machine, chips: int) -> Place:
    reuse = work.reuse_bytes(part)
    levels = [level for level in machine.levels if chips * level.n_bytes >= reuse]
    levels = levels or [machine.home]  # a single row of an embedding that is not counted in reuse
    known = next(level for level in levels if level.bytes_per_s is not None)
    return Place(part, reuse, levels[0], known)


def _prefill_s(prefill: Prefill, early_bytes: int, machine: Machine) -> float:
    """Return the time of one chip: the weights once at least, and all multiply-adds."""
    products = (prefill.early + prefill.late) / products_per_s(prefill, machine)
    mixers = (prefill.attention + prefill.retention) / machine.float_per_s
    return max(products + mixers, early_bytes / _rate(machine.home))


def _rate(level: Level) -> float:
    assert level.bytes_per_s is not None, level
    return level.bytes_per_s
