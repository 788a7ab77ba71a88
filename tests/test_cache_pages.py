"""New pages of the caches: a few a token, not all heads' and layers' in the same step."""

import resource

import numpy as np
import pytest

from yocobit.benchmark.random_model import write_random_model
from yocobit.benchmark.shapes import transformer
from yocobit.engine import Engine

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
