"""Cache memory: requests reserve what they need for the next step, in blocks."""

from __future__ import annotations

import pytest

from yocobit import Engine
from yocobit.costs import committed_bytes
from yocobit.engine import SamplingConfig
from yocobit.serving.runtime import cache_memory
from yocobit.serving.runtime.cache_memory import GROWTH, CacheMemory, is_full
from yocobit.serving.runtime.request import Request
from yocobit.serving.runtime.sequence import SequenceGroup

AMPLE = 1 << 30


def group_of(engine: Engine, n_prompt: int, max_tokens: int = 1000, n: int = 1) -> SequenceGroup:
    request = Request(
        prompt=(1,) * n_prompt, max_tokens=max_tokens, sampling=(SamplingConfig(),) * n
    )
    return SequenceGroup(request, engine, queued_at=0.0)


def size(engine: Engine, n_tokens: int, most: int) -> int:
    return committed_bytes(engine.config, "int8", n_tokens, most)


@pytest.mark.parametrize(
    ("n_prompt", "max_tokens", "expected"),
    [
        (1, 1000, GROWTH),
        (GROWTH - 1, 1000, GROWTH),
        (GROWTH, 1000, 2 * GROWTH),  # the next token needs the next block
        (1, 3, 4),  # never more than the whole request
        (GROWTH, 0, GROWTH),
    ],
)
@pytest.mark.parametrize("n", [1, 3])
def test_request_reserves_whole_blocks_of_each_choice(engine, n_prompt, max_tokens, expected, n):
    memory = CacheMemory(engine.config, "int8", AMPLE)
    group = group_of(engine, n_prompt, max_tokens, n)

    memory.reserve(group)

    assert group.reserved_tokens == expected
    assert group.reserved_bytes == n * size(engine, expected, group.request.n_tokens)
    assert memory.reserved_bytes == group.reserved_bytes


def test_growing_request_reserves_the_difference(engine):
    memory = CacheMemory(engine.config, "int8", AMPLE)
    group, other = group_of(engine, 10), group_of(engine, 10)
    memory.reserve(group)
    memory.reserve(other)
    assert not is_full(group)

    group.n_positions = GROWTH
    assert is_full(group)
    memory.reserve(group)

    assert not is_full(group)
    assert group.reserved_tokens == 2 * GROWTH
    assert memory.reserved_bytes == group.reserved_bytes + other.reserved_bytes


def test_memory_of_other_requests_stays_reserved_if_one_is_freed(engine):
    memory = CacheMemory(engine.config, "int8", AMPLE)
    group, other = group_of(engine, 10), group_of(engine, 200)
    memory.reserve(group)
    memory.reserve(other)

    memory.free(group)

    assert (group.reserved_tokens, group.reserved_bytes) == (0, 0)
    assert memory.reserved_bytes == other.reserved_bytes > 0
    memory.free(other)
    assert memory.reserved_bytes == 0


def test_request_alone_fits_exactly(engine):
    group = group_of(engine, 10)
    need = size(engine, GROWTH, group.request.n_tokens)

    assert CacheMemory(engine.config, "int8", need).fits(group, [])
    assert not CacheMemory(engine.config, "int8", need - 1).fits(group, [])


def test_request_fits_next_to_others_if_all_have_room_for_one_more_block(engine):
    running, group = group_of(engine, 10), group_of(engine, 3 * GROWTH)
    need = size(engine, 2 * GROWTH, 1010) + size(engine, 5 * GROWTH, 3 * GROWTH + 1000)

    for n_bytes, expected in [(need, True), (need - 1, False)]:
        memory = CacheMemory(engine.config, "int8", n_bytes)
        memory.reserve(running)
        assert memory.fits(group, [running]) == expected
        memory.free(running)


def test_next_block_has_room_up_to_the_last_byte(engine):
    group = group_of(engine, 10)
    need = size(engine, 2 * GROWTH, group.request.n_tokens)

    for n_bytes, expected in [(need, True), (need - 1, False)]:
        memory = CacheMemory(engine.config, "int8", n_bytes)
        group.n_positions = 10
        memory.reserve(group)
        group.n_positions = GROWTH
        assert memory.has_room_to_grow(group) == expected
        memory.free(group)


def test_heap_is_trimmed_after_an_eighth_of_the_memory_was_freed(engine, monkeypatch):
    trimmed = []
    monkeypatch.setattr(cache_memory, "trim_heap", lambda: trimmed.append(True))
    group = group_of(engine, 10)
    each = size(engine, GROWTH, group.request.n_tokens)
    memory = CacheMemory(engine.config, "int8", 8 * 3 * each)  # an eighth: three requests

    counts = []
    for _ in range(8):
        memory.reserve(group)
        memory.free(group)
        counts.append(len(trimmed))

    assert counts == [0, 0, 0, 1, 1, 1, 1, 2]
