"""Threads by default: affinity masks and quotas of control groups."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from yocobit.hardware import host
from yocobit.hardware.host import cpu_quota, default_threads
from yocobit.training import backend
from yocobit.training.backend import set_threads


def write(directory: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


V2 = "0::/user.slice/job"
V1 = "5:cpuset:/\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/"


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        (V2, {"user.slice/job/cpu.max": "150000 100000"}, 1.5),
        (V2, {"user.slice/job/cpu.max": "max 100000", "user.slice/cpu.max": "200000 100000"}, 2.0),
        (V2, {"user.slice/job/cpu.max": "300000 100000", "cpu.max": "100000 100000"}, 1.0),
        (V2, {"user.slice/job/cpu.max": "max 100000"}, None),
        (V2, {"unified/user.slice/job/cpu.max": "50000 100000"}, 0.5),
        (V2, {"cpu.max": "nonsense"}, None),
        ("0::/../../other", {"cpu.max": "100000 50000"}, 2.0),
        (
            V1,
            {
                "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "250000",
                "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
        (V1, {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1.0),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("", {}, None),
    ],
)
def test_quota_is_the_smallest_of_a_group_and_its_parents(tmp_path, groups, files, quota):
    write(tmp_path / "fs", files)
    (tmp_path / "cgroup").write_text(groups)

    assert cpu_quota(tmp_path / "cgroup", tmp_path / "fs") == quota


def test_quota_without_control_groups_is_none(tmp_path):
    assert cpu_quota(tmp_path / "absent", tmp_path) is None


@pytest.mark.parametrize(
    ("cpus", "quota", "threads"), [(4, None, 4), (4, 1.5, 2), (4, 0.1, 1), (2, 8.0, 2)]
)
def test_default_threads_are_the_cpus_that_the_process_may_use(monkeypatch, cpus, quota, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)))
    monkeypatch.setattr(host, "cpu_quota", lambda groups, root: quota)

    assert default_threads() == threads


def test_default_threads_read_the_quota_of_the_control_group(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    write(tmp_path / "fs", {"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 100000"})
    (tmp_path / "cgroup").write_text("0::/a/b\n")

    assert default_threads(tmp_path / "cgroup", tmp_path / "fs") == 3
    assert default_threads(tmp_path / "absent", tmp_path / "fs") == 8


@pytest.mark.parametrize(("process_cpus", "cpus", "threads"), [(3, 8, 3), (None, 8, 8), (0, 0, 1)])
def test_default_threads_are_all_cpus_without_affinity_masks(
    tmp_path, monkeypatch, process_cpus, cpus, threads
):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cpus or None)
    if process_cpus is not None:
        monkeypatch.setattr(os, "process_cpu_count", lambda: process_cpus, raising=False)

    assert default_threads(tmp_path / "absent", tmp_path) == threads


@pytest.mark.parametrize(
    ("requested", "n_processes", "omp", "threads"),
    [(None, 1, None, 8), (None, 2, None, 4), (None, 16, None, 1), (None, 1, "3", 3), (5, 1, "3", 5),
     (None, 2, "1", 4), (None, 1, "0", 8), (None, 1, "x", 8)],
)  # fmt: skip
def test_training_divides_the_default_threads_among_its_processes(
    monkeypatch, requested, n_processes, omp, threads
):
    before = torch.get_num_threads()
    monkeypatch.setattr(backend, "default_threads", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if omp is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", omp)
    try:
        assert set_threads(requested, n_processes) == threads == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


HEAPS = """
import ctypes, sys, threading
from yocobit.hardware.host import share_heap
if sys.argv[1] == "shared":
    share_heap()
kept = []
threads = [threading.Thread(target=lambda: kept.append(bytearray(5000))) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
c = ctypes.CDLL(None)
c.fdopen.restype = ctypes.c_void_p
stream = ctypes.c_void_p(c.fdopen(1, b"w"))
c.malloc_info(0, stream)
c.fflush(stream)
"""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library is not a recent glibc"
)
@pytest.mark.parametrize("kind", ["shared", "not shared"])
def test_threads_share_a_heap(kind):
    command = [sys.executable, "-c", HEAPS, kind]

    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert (output.count("<heap nr=") == 1) == (kind == "shared")
