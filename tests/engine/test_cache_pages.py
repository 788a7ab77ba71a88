"""Page faults of KV caches: a few per token; a growing cache is never copied."""

import ctypes
import platform
import re
import resource
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from yocobit.benchmark.random_model import write_random_model
from yocobit.benchmark.shapes import transformer
from yocobit.config import preset
from yocobit.costs import committed_bytes
from yocobit.engine import Engine
from yocobit.hardware.host import peak_bytes, reset_peak

N_LAYERS, N_HEADS, HEAD_DIM = 8, 8, 64
REGIONS = 2 * N_LAYERS * N_HEADS  # keys and values of every head and layer, each on separate pages


def map_large_buffers() -> None:
    """Let glibc map large buffers: training, and freed buffers, let it reuse the heap."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(-4, 1 << 16)  # M_MMAP_MAX
        ctypes.CDLL(None).mallopt(-3, 1 << 17)  # M_MMAP_THRESHOLD, constant from now on


@pytest.fixture(autouse=True)
def allocator() -> None:
    map_large_buffers()


@pytest.mark.parametrize("cache", ["f32", "int8", "int4"])
def test_page_faults_of_heads_and_layers_spread_over_steps(cache, tmp_path):
    shape = transformer(N_HEADS * HEAD_DIM, N_LAYERS, N_HEADS, N_HEADS, 256, 64)
    engine = Engine.load(write_random_model(shape, tmp_path / "model").path, threads=1)
    session = engine.session(1 << 17, cache)  # too large for the allocator to reuse freed memory
    session.feed(np.zeros(384, dtype=np.int32))

    faults = []
    for _ in range(512):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        session.step(0)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

    assert sum(faults) >= REGIONS  # there are page faults
    assert max(faults) <= REGIONS // 2


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) << 10


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory needs Linux")
def test_a_growing_cache_commits_memory_for_its_positions_only_and_copies_nothing(tmp_path):
    # One wide head: 4 KiB per position; keys are contiguous, as are values.
    one_head = {"n_heads": 1, "n_kv_heads": 1, "n_self_heads": 8, "n_self_kv_heads": 8}
    shape = preset("nano").replace(d_model=512, layers=("retention", "cross"), **one_head)
    engine = Engine.load(write_random_model(shape, tmp_path / "model").path, threads=1)
    session = engine.session(1 << 18, "f32")
    tokens = np.zeros(4096, dtype=np.int32)
    session.feed(tokens)  # with one-time allocations
    chunk_bytes = len(tokens) * session.memory().shared_kv_per_token
    slack = 6 << 20  # huge pages at the ends of keys and values, and Python's allocations

    for _ in range(4):
        reset_peak()
        before = resident_bytes()
        session.feed(tokens)
        assert abs(resident_bytes() - before - chunk_bytes) < slack
        assert peak_bytes() - before < chunk_bytes + slack

    assert chunk_bytes == 16 << 20
    assert session.memory().shared_kv == 1 << 30  # reserved, mostly not committed


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory needs Linux")
@pytest.mark.parametrize("cache", ["f32", "int8", "int4"])
def test_committed_bytes_bound_the_resident_memory_of_a_session(cache, tmp_path):
    """The server reserves them for a request; most of what its session could hold is virtual."""
    shape = transformer(N_HEADS * HEAD_DIM, N_LAYERS, N_HEADS, N_HEADS, 256, 64)
    model = write_random_model(shape, tmp_path / "model")
    slack = 1 << 20  # Python's allocations

    # In a process of its own: what ran before leaves freed pages, which a session may reuse.
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        sizes = process.submit(sizes_of_sessions, model.path, cache).result()

    for resident, bound, total in sizes:
        assert resident <= bound + slack
        assert bound <= 3 * resident + slack
        assert bound < total // 10


def sizes_of_sessions(path: Path, cache: str) -> list[tuple[int, int, int]]:
    """Return the resident bytes, the bound and the reserved bytes of sessions."""
    map_large_buffers()
    engine = Engine.load(path, threads=1)
    engine.session(1 << 17, cache).feed(np.zeros(700, dtype=np.int32))  # one-time allocations
    sizes = []
    for n_tokens in (1, 60, 300, 700):
        before = resident_bytes()
        session = engine.session(1 << 17, cache)
        session.feed(np.zeros(n_tokens, dtype=np.int32))
        bound = committed_bytes(engine.config, cache, n_tokens, 1 << 17)
        sizes.append((resident_bytes() - before, bound, session.memory().total))
        del session
    return sizes
