"""Machines to plan for: memory levels and arithmetic rates, each figure with its source.

Named machines are data sheets: nothing of this project was run on any of them. `here` is this host,
measured by yocobit.planning.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from yocobit.errors import UserError

HERE = "here"
_MB, _GB, _TB, _T = 10**6, 10**9, 1e12, 1e12


@dataclasses.dataclass(frozen=True)
class Level:
    """One memory level; its rate is None where the source gives none."""

    name: str
    n_bytes: int  # per chip
    bytes_per_s: float | None
    source: str


@dataclasses.dataclass(frozen=True)
class Machine:
    """One chip: arithmetic rates and memory levels, fastest first; the last holds everything."""

    name: str
    title: str
    levels: tuple[Level, ...]
    int8_per_s: float  # int8 multiply-adds, half of what data sheets call operations
    float_per_s: float  # float multiply-adds
    rates_source: str

    @property
    def home(self) -> Level:
        """The memory level that must hold the whole model."""
        return self.levels[-1]

    @property
    def is_measured(self) -> bool:
        """Whether this is the host, not a data sheet."""
        return self.name == HERE

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)


# TechPowerUp's news of February 2024, and another report with the arithmetic rates.
_GROQ_NEWS = "https://techpowerup.com/news-tags/Processor?page=3"
_GROQ_RATES = "https://multiplatform.ai/?p=32842"
# NVIDIA's table as a reseller prints it; arithmetic rates are those with sparsity, halved.
_H100_TABLE = "https://archive-lib.hpctech.co.jp/gpuproduct/nvidia-h100.html"
_H100_DENSE = "https://glennklockwood.com/garden/processors/h100"
_H100_L2 = "https://chipsandcheese.com/p/nvidias-h100-funny-l2-and-tons-of-bandwidth"

NAMED = {
    "groq": Machine(
        name="groq",
        title="Groq LPU (first generation)",
        levels=(Level("SRAM", 230 * _MB, 80 * _TB, _GROQ_NEWS),),
        int8_per_s=750 * _T / 2,
        float_per_s=188 * _T / 2,  # float16
        rates_source=_GROQ_RATES,
    ),
    "h100": Machine(
        name="h100",
        title="NVIDIA H100 SXM",
        levels=(
            Level("L2", 50 * _MB, None, _H100_L2),
            Level("HBM3", 80 * _GB, 3.35 * _TB, _H100_TABLE),
        ),
        int8_per_s=1979 * _T / 2,
        float_per_s=989 * _T / 2,  # bfloat16 and float16, dense
        rates_source=_H100_DENSE,
    ),
}


def named_machine(name: str) -> Machine:
    """Return one of NAMED; UserError lists the valid names."""
    if name not in NAMED:
        known = ", ".join((HERE, *NAMED))
        raise UserError(f"--machine must be one of {known} but is {name!r}")
    return NAMED[name]
