"""Preemption: requests that grow beyond the cache memory are recomputed with the same bits."""

from __future__ import annotations

import dataclasses
import re
import threading

import numpy as np
import pytest
from servers import NO_END, wait_for

from yocobit import Engine
from yocobit.costs import committed_bytes, memory
from yocobit.serving.runtime import scheduler as scheduler_module
from yocobit.serving.runtime.metrics import Metrics
from yocobit.serving.runtime.prefix_cache import PrefixCache
from yocobit.serving.runtime.request import Failure, Finish, Prefilled, Request, Token
from yocobit.serving.runtime.scheduler import Scheduler

TEXT = "And God said, Let there be light: and there was light. And God saw the light. "
ENDLESS = {int(token): bias for token, bias in NO_END.items()}
AMPLE = 1 << 30
GROWTH = 8  # positions


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(threads=1)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks and pages so small that short texts fill memory, and long prompts take long."""
    monkeypatch.setattr(scheduler_module, "GROWTH", GROWTH)
    monkeypatch.setattr(scheduler_module, "PREFILL_TOKENS_WHILE_DECODING", 4)
    monkeypatch.setattr(memory, "PAGE_BYTES", 1)


class Run:
    """A scheduler with its events, by request."""

    def __init__(self, engine: Engine, cache_bytes: int, prefix_mb: int = 0, **settings) -> None:
        self.events: dict = {}
        self.metrics = Metrics()
        self._changed = threading.Condition()
        per_token = engine.session(1).memory().per_token
        prefixes = PrefixCache(prefix_mb << 20, "m", per_token) if prefix_mb else None
        defaults = {"max_sequences": 64, "max_waiting": 256, "cache": "int8"}
        self.scheduler = Scheduler(
            engine,
            self._receive,
            cache_bytes=cache_bytes,
            prefixes=prefixes,
            metrics=self.metrics,
            **{**defaults, **settings},
        )

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_) -> None:
        self.scheduler.stop()

    def _receive(self, batches) -> None:
        with self._changed:
            for group, events in batches:
                self.events.setdefault(group, []).extend(events)
            self._changed.notify_all()

    def wait(self, group) -> list:
        n_choices = len(group.request.sampling)

        def is_over() -> bool:
            events = self.events.get(group, [])
            failed = any(isinstance(e, Failure) for e in events)
            return failed or sum(isinstance(e, Finish) for e in events) == n_choices

        with self._changed:
            assert self._changed.wait_for(is_over, timeout=60)
        return self.events[group]

    def results(self, requests: list[Request]) -> tuple[list, list]:
        """Run requests together; return their groups and the events of each choice."""
        groups = self.scheduler.submit(requests)
        return groups, [by_choice(self.wait(group)) for group in groups]

    @property
    def n_preemptions(self) -> int:
        found = re.search(rb"num_preemptions_total (\d\S*)", self.metrics.text())
        return int(float(found[1]))


def by_choice(events: list) -> dict:
    """Return the events of each choice; those of several choices come in any order."""
    found: dict = {"prompt": [e.logprobs for e in events if isinstance(e, Prefilled)]}
    for event in events:
        if isinstance(event, Token | Finish):
            found.setdefault(event.choice, []).append(event)
    return found


def make_request(engine: Engine, prompt=TEXT, max_tokens=60, seed=0, n=1, **fields) -> Request:
    options = {"temperature": 1.0, "repetition_penalty": 1.1, "frequency_penalty": 0.3}
    return Request(
        prompt=tuple(engine.encode(prompt)),
        max_tokens=max_tokens,
        sampling=tuple(engine.sampling(**options, seed=seed + i) for i in range(n)),
        **{"logit_bias": ENDLESS, "n_logprobs": 2, **fields},
    )


def bytes_at_the_start(engine: Engine, requests: list[Request], n_blocks: int = 1) -> int:
    """Return the memory of all requests when they have `n_blocks` more than their prompts."""
    total = 0
    for each in requests:
        blocks = len(each.prompt) // GROWTH + 1 + n_blocks
        n_tokens = min(blocks * GROWTH, each.n_tokens)
        size = committed_bytes(engine.config, "int8", n_tokens, each.n_tokens)
        total += len(each.sampling) * size
    return total


class Counting:
    """Guided decoding whose tokens depend on how many there were before."""

    def __init__(self) -> None:
        self.n = 0

    def mask(self, logits):
        masked = np.full_like(logits, -np.inf)
        masked[300 + self.n :: 7] = logits[300 + self.n :: 7]
        return masked

    def force_completion(self, token, n_left):
        return token

    def accept(self, token):
        self.n += 1
        return self.n == 40


class Collected:
    """Hidden states of a prompt, as they come."""

    def __init__(self) -> None:
        self.rows: list = []

    def __call__(self, hidden) -> None:
        self.rows.extend(hidden.copy())


KINDS = {
    "text": {},
    "choices": {"n": 3},
    "guided": {"guided": Counting},
    "stop": {"stop": ("the", "and"), "logit_bias": {}},
    "prompt_logprobs": {"n_prompt_logprobs": 1},
    "prompt_logprobs_of_a_long_prompt": {"n_prompt_logprobs": 1, "prompt": TEXT * 12},
    "long_prompt": {"prompt": TEXT * 12, "n": 2},
}


@pytest.mark.parametrize("prefix_mb", [0, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_preempted_request_gives_the_same_bits(engine, kind, prefix_mb):
    """Tokens, text, log-probabilities: also those of samplers that know earlier tokens."""
    older = [make_request(engine, max_tokens=150, seed=i) for i in (10, 20)]
    youngest = make_request(engine, **KINDS[kind])
    requests = [*older, youngest]
    with Run(engine, AMPLE) as run:
        _, expected = run.results(requests)

    with Run(engine, bytes_at_the_start(engine, requests), prefix_mb) as run:
        groups, found = run.results(requests)

    assert found == expected
    assert groups[2].n_preemptions > 0
    assert groups[0].n_preemptions == 0
    assert run.n_preemptions == sum(group.n_preemptions for group in groups)
    assert run.scheduler.reserved_bytes == 0


def test_preempted_embedding_has_each_hidden_state_once(engine):
    collected, expected = Collected(), Collected()
    older = [make_request(engine, max_tokens=150, seed=i) for i in (10, 20)]

    def embedding(collect) -> Request:
        return make_request(engine, TEXT * 12, 0, n_logprobs=None, on_hidden_states=collect)

    with Run(engine, AMPLE) as run:
        run.results([embedding(expected)])
    requests = [*older, embedding(collected)]
    with Run(engine, bytes_at_the_start(engine, requests)) as run:
        groups, _ = run.results(requests)

    assert groups[2].n_preemptions > 0
    assert len(collected.rows) == len(requests[2].prompt)
    assert np.array_equal(collected.rows, expected.rows)


@pytest.mark.parametrize("prefix_mb", [0, 64])
def test_all_requests_complete_in_the_memory_of_the_largest(engine, prefix_mb):
    requests = [
        make_request(engine, max_tokens=40 + 10 * i, seed=i, client=f"{i % 3}") for i in range(8)
    ]
    with Run(engine, AMPLE) as run:
        _, expected = run.results(requests)
        cache_bytes = max(map(run.scheduler.cache_bytes_of, requests))

    with Run(engine, cache_bytes, prefix_mb) as run:
        groups, found = run.results(requests)

    assert found == expected
    assert groups[0].n_preemptions == 0


def test_growing_requests_stay_within_the_memory(engine):
    requests = [make_request(engine, max_tokens=80, seed=i) for i in range(6)]
    with Run(engine, bytes_at_the_start(engine, requests[:3])) as run:
        groups = run.scheduler.submit(requests)
        while not all(group.is_finished for group in groups):
            assert run.scheduler.reserved_bytes <= run.scheduler.cache_bytes
        for group in groups:
            run.wait(group)

    assert run.n_preemptions > 0


def test_more_requests_run_than_their_whole_lengths_would_allow(engine):
    requests = [make_request(engine, max_tokens=1000) for _ in range(8)]
    with Run(engine, bytes_at_the_start(engine, requests)) as run:
        groups = run.scheduler.submit(requests)
        wait_for(lambda: len(run.scheduler.running) == 8)

        whole = run.scheduler.cache_bytes_of(requests[0])
        assert 8 * whole > run.scheduler.cache_bytes
        for group in groups:
            run.scheduler.cancel(group)
        wait_for(lambda: not run.scheduler.running and not run.scheduler.n_waiting)


@pytest.fixture
def preempted(engine):
    """A scheduler and its two requests: the younger is preempted, and waits for the older."""
    older = make_request(engine, max_tokens=3000)
    long = make_request(engine, TEXT * 200, 2, timeout_s=3600.0)
    younger = dataclasses.replace(long, prompt=long.prompt[:2900])
    with Run(engine, bytes_at_the_start(engine, [older, younger])) as run:
        assert run.scheduler.cache_bytes_of(older) <= run.scheduler.cache_bytes
        groups = run.scheduler.submit([older, younger])
        wait_for(lambda: groups[1].n_preemptions > 0 and run.scheduler.n_waiting == 1)
        yield run, *groups


def test_preempted_request_can_be_cancelled(preempted):
    run, older, younger = preempted

    run.scheduler.cancel(younger)
    wait_for(lambda: younger.is_finished)

    assert run.scheduler.n_waiting == 0 and not older.is_finished


def test_preempted_request_fails_when_the_scheduler_stops(preempted):
    run, _, younger = preempted

    run.scheduler.stop()

    assert run.events[younger][-1].error.code == "shutting_down"


def test_preempted_request_times_out_as_one_that_was_started(preempted):
    run, _, younger = preempted

    younger.queued_at -= 3601
    run.wait(younger)

    error = run.events[younger][-1].error
    assert error.code == "timeout" and "request fewer tokens" in str(error)
