"""Preemption: requests that grow beyond the cache memory are recomputed with the same bits."""

from __future__ import annotations

import dataclasses
import itertools
import re
import threading

import numpy as np
import pytest
from servers import NO_END, wait_for

from yocobit import Engine
from yocobit.costs import committed_bytes, memory
from yocobit.serving.runtime import cache_memory
from yocobit.serving.runtime import scheduler as scheduler_module
from yocobit.serving.runtime.metrics import Metrics
from yocobit.serving.runtime.prefix_cache import PrefixCache
from yocobit.serving.runtime.request import Failure, Finish, Prefilled, Request, Token
from yocobit.serving.runtime.scheduler import Scheduler

TEXT = "And God said, Let there be light: and there was light. And God saw the light. "
ENDLESS = {int(token): bias for token, bias in NO_END.items()}
AMPLE = 1 << 30
GROWTH = 8  # positions


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks and pages so small that short texts fill memory, and long prompts take long."""
    monkeypatch.setattr(cache_memory, "GROWTH", GROWTH)
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
    """Guided decoding whose tokens depend on how many there were before, at most `limit`."""

    def __init__(self, limit: int = 40) -> None:
        self.n, self._limit = 0, limit

    def mask(self, logits):
        masked = np.full_like(logits, -np.inf)
        masked[300 + self.n :: 7] = logits[300 + self.n :: 7]
        return masked

    def force_completion(self, token, n_left):
        return token

    def accept(self, token):
        self.n += 1
        return self.n == self._limit


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
    assert run.scheduler.memory.reserved_bytes == 0


@pytest.mark.parametrize("prefix_mb", [0, 64])
def test_choice_that_is_complete_is_not_computed_again(engine, prefix_mb):
    older = [make_request(engine, max_tokens=150, seed=i) for i in (10, 20)]

    def requests() -> list[Request]:
        limits = itertools.cycle([3, 40, 25])
        youngest = make_request(engine, n=3, guided=lambda: Counting(next(limits)))
        return [*older, youngest]

    with Run(engine, AMPLE) as run:
        _, expected = run.results(requests())

    with Run(engine, bytes_at_the_start(engine, requests()), prefix_mb) as run:
        groups, found = run.results(requests())

    assert groups[2].n_preemptions > 0
    assert found == expected
    assert [len(found[2][choice]) for choice in range(3)] == [3 + 1, 40 + 1, 25 + 1]


@pytest.mark.parametrize("prefix_mb", [0, 64])
def test_reserved_bytes_are_those_of_the_running_requests_in_every_step(
    engine, prefix_mb, monkeypatch
):
    requests = [
        make_request(engine, max_tokens=60, seed=i, n=1 + (i == 3), client=f"{i % 2}")
        for i in range(8)
    ]
    with Run(engine, AMPLE) as run:
        _, expected = run.results(requests)
    with Run(engine, bytes_at_the_start(engine, requests[:4]), prefix_mb) as run:
        scheduler, wrong, n_steps = run.scheduler, [], 0
        groups: list = []
        ended: list = []  # a preempted request that is cancelled, and a running one that times out
        step = scheduler._step

        def checked_step() -> None:
            nonlocal n_steps
            n_steps += 1
            n_bytes = sum(group.reserved_bytes for group in scheduler.running)
            if n_bytes != scheduler.memory.reserved_bytes or n_bytes > scheduler.memory.n_bytes:
                wrong.append((n_steps, n_bytes, scheduler.memory.reserved_bytes))
            wrong.extend(group for group in scheduler._waiting if group.reserved_bytes)
            for group in scheduler.running:
                n_needed = max([session.position for session in group._sessions], default=0)
                if n_needed > group.reserved_tokens:
                    wrong.append((n_steps, group.number, n_needed, group.reserved_tokens))
            step()
            if not ended and (preempted := [g for g in groups if g.n_preemptions]):
                ended.extend([preempted[0], groups[0]])
                scheduler.cancel(ended[0])
                ended[1].queued_at -= 3600

        monkeypatch.setattr(scheduler, "_step", checked_step)
        with scheduler._changed:
            groups.extend(scheduler.submit(requests))
        wait_for(lambda: not scheduler.running and not scheduler.n_waiting)

    assert not wrong
    assert scheduler.memory.reserved_bytes == 0
    assert [group.outcome for group in ended] == ["cancelled", "504"]
    for group, each in zip(groups, expected, strict=True):
        if group not in ended:
            assert by_choice(run.wait(group)) == each


def test_preempted_request_fails_once_if_there_is_no_memory_to_resume(engine, monkeypatch):
    older = [make_request(engine, max_tokens=100, seed=i) for i in (10, 20)]
    younger = make_request(engine, n=2)
    make_session, n_sessions = engine.session, 0

    def session(*arguments):
        """Fail for the second choice of the request that resumes."""
        nonlocal n_sessions
        n_sessions += 1
        if n_sessions == 5:
            raise MemoryError
        return make_session(*arguments)

    with Run(engine, bytes_at_the_start(engine, [*older, younger])) as run:
        monkeypatch.setattr(engine, "session", session)
        groups = run.scheduler.submit([*older, younger])
        for group in groups:
            run.wait(group)
        wait_for(lambda: not run.scheduler.running)

    assert groups[2].n_preemptions == 1
    assert [group.outcome for group in groups] == ["length", "length", "503"]
    assert sum(isinstance(event, Failure) for event in run.events[groups[2]]) == 1
    assert run.scheduler.memory.reserved_bytes == 0


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
        cache_bytes = max(run.scheduler.session_bytes(each.n_tokens) for each in requests)

    with Run(engine, cache_bytes, prefix_mb) as run:
        groups, found = run.results(requests)

    assert found == expected
    assert groups[0].n_preemptions == 0


def test_growing_requests_stay_within_the_memory(engine):
    requests = [make_request(engine, max_tokens=80, seed=i) for i in range(6)]
    with Run(engine, bytes_at_the_start(engine, requests[:3])) as run:
        groups = run.scheduler.submit(requests)
        while not all(group.is_finished for group in groups):
            assert run.scheduler.memory.reserved_bytes <= run.scheduler.memory.n_bytes
        for group in groups:
            run.wait(group)

    assert run.n_preemptions > 0


def test_more_requests_run_than_their_whole_lengths_would_allow(engine):
    requests = [make_request(engine, max_tokens=1000) for _ in range(8)]
    with Run(engine, bytes_at_the_start(engine, requests)) as run:
        groups = run.scheduler.submit(requests)
        wait_for(lambda: len(run.scheduler.running) == 8)

        whole = run.scheduler.session_bytes(requests[0].n_tokens)
        assert 8 * whole > run.scheduler.memory.n_bytes
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
        assert run.scheduler.session_bytes(older.n_tokens) <= run.scheduler.memory.n_bytes
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
