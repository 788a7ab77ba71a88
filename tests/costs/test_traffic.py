"""The cost model equals counts by hand and the engine's reservations.

Letters: C d_model   D head size
"""

from __future__ import annotations

from typing import get_args

import pytest
from packed_models import STACKS, nano

from yocobit import Engine
from yocobit.benchmark.random_model import write_random_model
from yocobit.costs import (
    CACHE_FORMATS,
    decode_bytes,
    mixer_multiply_adds,
    multiply_adds,
    session_bytes,
    weight_bytes,
)
from yocobit.costs.traffic import session_traffic
from yocobit.engine.session import CacheType

# One layer of each mixer: window, retention, full, gmu, cross. D is 16, and 32 in the first two.
MIXED = nano("mixed", "ternary", window=4)
CACHES = get_args(CacheType)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_random_model(MIXED, tmp_path_factory.mktemp("model") / "mixed")


def test_cache_traffic_equals_a_count_by_hand():
    position, ring, state = 2 * 2 * 16 * 2, 2 * 2 * 32 * 2, 4 * 2 * 32 * 32

    # full and cross see 1 position; then 11 and 12 of them, the window 4 each.
    assert session_traffic(MIXED, "f16", 0, 1) == 2 * position + ring + 2 * state
    assert session_traffic(MIXED, "f16", 10, 2) == 2 * 23 * position + 2 * 4 * ring + 2 * 2 * state
    # int8 has a float32 scale for each position and head.
    assert session_traffic(MIXED, "int8", 0, 1) == 2 * 2 * 2 * 20 + 2 * 2 * 36 + 2 * state


def test_every_cross_layer_reads_the_shared_cache():
    config = MIXED.replace(layers=("retention", "cross", "cross", "cross"))
    alone = MIXED.replace(layers=("retention",))

    read = session_traffic(config, "f16", 99, 1) - session_traffic(alone, "f16", 99, 1)

    assert read == 3 * 100 * (2 * 2 * 16 * 2)


def test_gated_memory_units_read_weights_but_no_cache(model):
    without = MIXED.replace(layers=("window", "retention", "full", "cross"))

    assert session_traffic(MIXED, "f16", 99, 3) == session_traffic(without, "f16", 99, 3)
    assert session_bytes(MIXED, "f16", 99) == session_bytes(without, "f16", 99)
    # Two projections of 64 rows, 32 bytes each; norms have no matrices.
    of_mixer = [t for name, t in model.tensors.items() if name.startswith("layers.3.mixer.")]
    matrices = [t.end - t.begin for t in of_mixer if t.dtype == "U8"]
    assert matrices == [64 * 32, 64 * 32]


@pytest.mark.parametrize("cache", CACHES)
def test_traffic_of_one_position_equals_the_engines_memory_per_token(model, cache):
    memory = Engine(model, 1, None).session(64, cache).memory()

    more = session_traffic(MIXED, cache, 50, 1) - session_traffic(MIXED, cache, 49, 1)

    assert more == memory.shared_kv_per_token + memory.full_per_token


@pytest.fixture(scope="module")
def engine_of_stack(tmp_path_factory):
    """Return a function from a stack and an attention setting to an engine."""
    engines = {}

    def engine(stack, attention):
        if (stack, attention) not in engines:
            config = nano(stack, "ternary", window=4)
            config = config.attending(attention) if attention else config
            model = write_random_model(config, tmp_path_factory.mktemp("model") / "model")
            engines[stack, attention] = Engine(model, 1, None)
        return engines[stack, attention]

    return engine


@pytest.mark.parametrize("n_tokens", [1, 31, 33, 96, 1000, 5000])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(
    ("stack", "attention"),
    [*((stack, None) for stack in STACKS), ("mixed", "index:128"), ("mixed", "index:2048")],
)
def test_session_bytes_equal_the_engines_reservation(
    engine_of_stack, stack, attention, cache, n_tokens
):
    engine = engine_of_stack(stack, attention)

    assert session_bytes(engine.config, cache, n_tokens) == (
        engine.session(n_tokens, cache).memory().total
    )


def test_there_is_a_cache_format_for_every_cache_type():
    assert tuple(CACHE_FORMATS) == CACHES


def test_weight_bytes_are_all_tensors_but_the_embedding(model):
    sizes = {name: tensor.end - tensor.begin for name, tensor in model.tensors.items()}

    embedding = 512 * 64 + 512 * 4
    assert weight_bytes(model) == sum(sizes.values()) - embedding
    # 8 rows of 64 columns are one block of 128: 32 bytes a row.
    assert sizes["layers.0.mixer.q_proj.weight"] == 64 * 32


def test_a_tied_head_reads_the_embedding_unless_it_is_int4(tmp_path):
    config = MIXED.replace(tie_embeddings=True)
    tied = write_random_model(config, tmp_path / "tied")
    int4 = write_random_model(config, tmp_path / "int4", head="int4")

    body = weight_bytes(tied) - (512 * 64 + 512 * 4)
    # 64 columns are one block: 32 bytes and a float16 scale a row.
    assert weight_bytes(int4) == body + 512 * (32 + 2)


def test_decode_bytes_count_weights_once_and_caches_per_session(model):
    each = session_traffic(MIXED, "f16", 7, 3) + 3 * (64 + 4)  # rows of the embedding

    assert decode_bytes(model, "f16", 7, 3, batch=5) == 3 * weight_bytes(model) + 5 * each


def test_multiply_adds_equal_a_count_by_hand():
    ffn = 3 * 64 * 128
    retention, window, full = 5 * 64 * 64 + 2 * 64, 4 * 64 * 64, 2 * 64 * 64 + 2 * 32 * 64
    shared = 2 * 32 * 64
    early = retention + window + full + 3 * ffn + shared
    late = 2 * (2 * 64 * 64 + ffn) + 512 * 64  # gmu, cross and head

    assert multiply_adds(MIXED, 10, 10) == 10 * (early + late)
    assert multiply_adds(MIXED, 10, 1) == 10 * early + late
    assert multiply_adds(MIXED.replace(tie_embeddings=True), 10, 1) == 10 * early + late


@pytest.mark.parametrize(("depth", "n"), [(0, 1), (0, 3), (0, 9), (2, 5), (4, 2), (9, 7)])
def test_mixer_multiply_adds_equal_a_count_over_tokens(depth, n):
    C, D, last = 64, 32, 2
    expected = 0
    for position in range(depth, depth + n):
        expected += 2 * C * (position + 1)  # full
        expected += 2 * C * min(position + 1, 4)  # window
        expected += 2 * C * D  # retention
        if position >= depth + n - last:
            expected += 2 * C * (position + 1)  # cross

    assert mixer_multiply_adds(MIXED, depth, n, min(last, n)) == expected
