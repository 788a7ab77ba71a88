"""The load of other programs while something is measured.

Their share is the busy time of the CPUs in /proc/stat minus the CPU time of this process. Time that
a hypervisor gives to other machines ("steal") counts as theirs. Without /proc/stat, the share is
None.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

_MAX_SHARE = 0.1  # of the CPUs; above it, figures are not those of an idle machine
_MIN_TICKS = 10  # per CPU: a shorter time has too few ticks of /proc/stat for a share
_N_FIELDS = 8  # user nice system idle iowait irq softirq steal; the guests' are part of user
_IDLE = slice(3, 5)


class CpuTimes(NamedTuple):
    """CPU times since boot, summed over some CPUs."""

    n_cpus: int
    busy: int  # ticks
    total: int  # ticks
    own_s: float  # of all threads of this process
    at_s: float  # when these were read

    def others_share(self, later: CpuTimes | None) -> float | None:
        """Return the share of the CPUs that other programs used until `later`.

        None if it is unknown, or if the time between the two is too short.
        """
        if later is None or later.total - self.total < _MIN_TICKS * self.n_cpus:
            return None
        busy = (later.busy - self.busy) / (later.total - self.total)
        own = (later.own_s - self.own_s) / ((later.at_s - self.at_s) * self.n_cpus)
        return min(1.0, max(0.0, busy - own))


def read_cpu_times(cpus: Collection[int], stat: Path = Path("/proc/stat")) -> CpuTimes | None:
    """Return the times of these CPUs up to now; None if the system does not report them."""
    try:
        lines = [line.split() for line in stat.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        return None
    names = {f"cpu{cpu}" for cpu in cpus}
    rows = [
        [int(value) for value in fields[1 : 1 + _N_FIELDS]]
        for fields in lines
        if fields and fields[0] in names and all(map(str.isdecimal, fields[1:]))
    ]
    if len(rows) < len(names) or not rows:
        return None
    total, idle = sum(map(sum, rows)), sum(sum(row[_IDLE]) for row in rows)
    return CpuTimes(len(rows), total - idle, total, time.process_time(), time.perf_counter())


def load_warning(others_share: float | None) -> str | None:
    """Return a line if other programs used more than a tenth of the CPUs, None otherwise."""
    if others_share is None or others_share <= _MAX_SHARE:
        return None
    used = f"other programs used {others_share:.0%} of the CPUs"
    return f"load        {used}: these are not this machine's figures"
