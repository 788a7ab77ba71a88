"""Pages of the caches: new ones a few a token, and none that are copied as a cache grows."""

import re
import resource
from pathlib import Path

import numpy as np
import pytest

from yocobit.benchmark.random_model import write_random_model
from yocobit.benchmark.shapes import transformer
from yocobit.config import preset
from yocobit.engine import Engine
from yocobit.hardware.host import peak_bytes, reset_peak

N_LAYERS, N_HEADS, HEAD_DIM = 8, 8, 64
REGIONS = 2 * N_LAYERS * N_HEADS  # of keys and of values, each of which comes to pages of its own


@pytest.mark.parametrize("cache", ["f32", "int8", "int4"])
def test_no_step_waits_for_new_pages_of_all_heads_and_layers(cache, tmp_path):
    shape = transformer(N_HEADS * HEAD_DIM, N_LAYERS, N_HEADS, N_HEADS, 256, 64)
    engine = Engine.load(write_random_model(shape, tmp_path / "model").path, threads=1)
    session = engine.session(1 << 17, cache)  # so much that no freed memory is used again
    session.feed(np.zeros(384, dtype=np.int32))

    faults = []
    for _ in range(512):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        session.step(0)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

    assert sum(faults) >= REGIONS  # they come to some
    assert max(faults) <= REGIONS // 2


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) << 10


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are Linux's to tell"
)
def test_a_cache_that_grows_takes_what_its_positions_need_and_copies_none(tmp_path):
    # One wide head: 4 KiB a position, whose keys and whose values lie together.
    one_head = {"n_heads": 1, "n_kv_heads": 1, "n_self_heads": 8, "n_self_kv_heads": 8}
    shape = preset("nano").replace(d_model=512, layers=("retention", "cross"), **one_head)
    engine = Engine.load(write_random_model(shape, tmp_path / "model").path, threads=1)
    session = engine.session(1 << 18, "f32")
    tokens = np.zeros(4096, dtype=np.int32)
    session.feed(tokens)  # with all that is made once
    chunk_bytes = len(tokens) * session.memory().shared_kv_per_token
    slack = 6 << 20  # huge pages at the ends of keys and of values, and of what Python does

    for _ in range(4):
        reset_peak()
        before = resident_bytes()
        session.feed(tokens)
        assert abs(resident_bytes() - before - chunk_bytes) < slack
        assert peak_bytes() - before < chunk_bytes + slack

    assert chunk_bytes == 16 << 20
    assert session.memory().shared_kv == 1 << 30  # reserved at first, hardly any of it taken
