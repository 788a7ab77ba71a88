"""This host: CPU, caches, memory, and the version and commit of yocobit."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yocobit.system import c_function
from yocobit.version import __version__

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# CPU features that this engine or other engines dispatch kernels by.
_FEATURES = re.compile(
    r"avx\w*|fma|f16c|sse4_2|ssse3|bmi2|gfni|amx_\w+|asimd\w*|sve\w*|i8mm|bf16|fphp|neon|dotprod"
)
_KIB, _MIB = 1 << 10, 1 << 20
_M_ARENA_MAX, _M_MMAP_THRESHOLD = -8, -3  # of glibc's malloc.h
_CPU = Path("/sys/devices/system/cpu")


@dataclasses.dataclass(frozen=True)
class Caches:
    """Caches of the first CPU; typical sizes if the system does not report them."""

    l2_bytes: int = _MIB
    last_bytes: int = 32 * _MIB
    last_level: int = 3
    last_shared_by: int = 1  # CPUs
    is_known: bool = False


@dataclasses.dataclass(frozen=True)
class Host:
    """The machine and the build of a measurement."""

    version: str  # of yocobit
    commit: str | None  # None outside the source tree
    cpu: str
    n_cpus: int  # in this process's affinity mask
    features: tuple[str, ...]
    caches: Caches
    memory_bytes: int | None
    system: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**dataclasses.asdict(self), "features": list(self.features)}


def describe_host() -> Host:
    """Read the description of this host from the system."""
    info = _cpu_info()
    words = info.get("flags", info.get("Features", "")).split()
    return Host(
        version=__version__,
        commit=_commit(),
        cpu=info.get("model name") or platform.processor() or platform.machine(),
        n_cpus=len(usable_cpus()),
        features=tuple(word for word in words if _FEATURES.fullmatch(word)),
        caches=read_caches(),
        memory_bytes=_memory("MemTotal"),
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
    )


def provenance() -> dict[str, Any]:
    """Return the provenance of a results file: command, machine and commit."""
    command = shlex.join(["python", *sys.orig_argv[1:]])
    return {"command": command, "machine": describe_host().to_dict()}


def usable_cpus() -> list[int]:
    """Return the CPUs of this process's affinity mask, one CPU of each core first."""
    seen: set[str] = set()
    first: list[int] = []
    others: list[int] = []
    for cpu in _allowed_cpus():
        siblings = _read(_CPU / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu)
        (others if siblings in seen else first).append(cpu)
        seen.add(siblings)
    return first + others


def default_threads(
    groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int:
    """Return the default number of threads: the CPUs that this process may use, at least one.

    That is the smaller of the affinity mask and the CPU quota of its control group, rounded up.
    Engine, training and benchmarks all use this default.
    """
    n_cpus, quota = len(_allowed_cpus()), cpu_quota(groups, root)
    return n_cpus if quota is None else max(1, min(n_cpus, math.ceil(quota)))


def _allowed_cpus() -> list[int]:
    """Return the CPUs of the affinity mask; all CPUs on a system without such masks."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    count = getattr(os, "process_cpu_count", os.cpu_count)  # from Python 3.13 on
    return list(range(count() or 1))


def cpu_quota(
    groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> float | None:
    """Return the CPUs that the quotas of control groups (v1 or v2) allow this process.

    The smallest of its group and their parents; None without a limit.
    """
    quotas = []
    for line in (_read(groups) or "").splitlines():
        _, controllers, name = line.split(":", 2)
        names = set(controllers.split(","))
        if names == {""}:  # v2; next to v1, it is mounted in a directory of its own
            mount = root / "unified" if (root / "unified").is_dir() else root
            read = _quota_v2
        elif "cpu" in names:
            mounts = (root / controllers, root / "cpu")
            mount, read = next((m for m in mounts if m.is_dir()), root), _quota_v1
        else:
            continue
        # In a container, its own group may be mounted as the root, which then has no `name`.
        parts = Path(name.lstrip("/")).parts
        for n in range(len(parts) + 1):
            quotas.append(read(mount.joinpath(*parts[:n])))
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_v2(group: Path) -> float | None:
    return _ratio(*(_read(group / "cpu.max") or "").split())


def _quota_v1(group: Path) -> float | None:
    return _ratio(_read(group / "cpu.cfs_quota_us") or "", _read(group / "cpu.cfs_period_us") or "")


def _ratio(quota: str = "", period: str = "", *_: str) -> float | None:
    """Return a quota in periods; None for "max", "-1" and files that are missing."""
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None
    return int(quota) / int(period) or None


def read_caches(directory: Path = _CPU / "cpu0/cache") -> Caches:
    """Read the sizes of a CPU's caches from sysfs."""
    levels: dict[int, tuple[int, int]] = {}  # bytes, CPUs that share it
    for index in directory.glob("index*"):
        kind, level, size = (_read(index / name) for name in ("type", "level", "size"))
        match = re.fullmatch(r"(\d+)([KM])", size or "")
        if kind not in ("Data", "Unified") or not (level or "").isdecimal() or not match:
            continue
        n_bytes = int(match[1]) * (_KIB if match[2] == "K" else _MIB)
        levels[int(level or 0)] = n_bytes, _count(_read(index / "shared_cpu_list") or "0")
    if not levels or max(levels) < 2:
        return Caches()
    last = max(levels)
    l2_bytes = levels.get(2, levels[last])[0]
    return Caches(l2_bytes, levels[last][0], last, levels[last][1], is_known=True)


def available_bytes() -> int | None:
    """Return the memory that is available without swapping; None if it is not reported."""
    return _memory("MemAvailable")


def reset_peak() -> None:
    """Reset `peak_bytes` to the memory in use now, if the system supports it."""
    trim_heap()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def share_heap() -> None:
    """Have all threads of this process allocate from one heap; no effect without glibc.

    By default, each thread has a heap of its own, which keeps the memory that the thread freed.
    Freed blocks of at least a megabyte are returned to the system. By default, glibc raises this
    limit to the size of the largest block that was freed.
    """
    if (mallopt := c_function("mallopt")) is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _MIB)


def trim_heap() -> None:
    """Return freed memory in the middle of the heap to the system; no effect without glibc."""
    if (malloc_trim := c_function("malloc_trim")) is not None:
        malloc_trim(0)


def allocated_bytes() -> int:
    """Return the bytes that this process has allocated and not freed.

    Without glibc 2.33, that is its resident memory, which may include freed memory.
    """
    if (measure := c_function("mallinfo2")) is None:  # not glibc, or before 2.33
        return resident_bytes()
    measure.restype = _MallInfo
    info = measure()
    return int(info.uordblks + info.hblkhd)


class _MallInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def resident_bytes() -> int:
    """Return the resident memory of this process; its peak on systems without /proc."""
    found = re.search(r"VmRSS:\s+(\d+) kB", _read(Path("/proc/self/status")) or "")
    return int(found[1]) * _KIB if found else peak_bytes()


def peak_bytes() -> int:
    """Return the peak resident memory of this process, including pages of mapped files.

    0 if the system does not report it.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", _read(Path("/proc/self/status")) or "")
    if found:
        return int(found[1]) * _KIB
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * _KIB


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _count(ranges: str) -> int:
    """Count the CPUs of a list such as "0-3,8"."""
    return sum(int(b or a) - int(a) + 1 for a, _, b in _pairs(ranges))


def _pairs(ranges: str) -> Iterator[tuple[str, str, str]]:
    for part in ranges.split(","):
        yield part.partition("-")


def _cpu_info() -> dict[str, str]:
    """Return the lines of the first CPU in /proc/cpuinfo."""
    lines = (_read(Path("/proc/cpuinfo")) or "").split("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _memory(name: str) -> int | None:
    found = re.search(rf"^{name}:\s+(\d+) kB", _read(Path("/proc/meminfo")) or "", re.MULTILINE)
    return int(found[1]) * _KIB if found else None


def _commit() -> str | None:
    """Return the commit of this source tree, with "-dirty" if it has changes."""
    package = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=True
        )
        return done.stdout.strip()

    try:
        if git("rev-parse", "--show-prefix") != "src/yocobit/":
            return None  # installed inside another project's tree
        return git("describe", "--always", "--dirty", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None
