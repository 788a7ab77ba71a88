"""The scheduler: order, limits, and output that is independent of batch composition."""

from __future__ import annotations

import threading
import time

import pytest
from servers import NO_END

from yocobit import Engine
from yocobit.serving.errors import APIError
from yocobit.serving.runtime.metrics import Metrics
from yocobit.serving.runtime.prefix_cache import PrefixCache
from yocobit.serving.runtime.request import Failure, Finish, Prefilled, Request, Token
from yocobit.serving.runtime.scheduler import Scheduler

TEXT = "And God said, Let there be light: and there was light. And God saw the light. "
ENDLESS = {int(token): bias for token, bias in NO_END.items()}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(threads=1)


class Listener:
    """Collects events by job."""

    def __init__(self) -> None:
        self.events: dict = {}
        self.steps: list = []  # jobs that each delivery was for
        self._changed = threading.Condition()

    def __call__(self, batches) -> None:
        with self._changed:
            self.steps.append([job for job, _ in batches])
            for job, events in batches:
                self.events.setdefault(job, []).extend(events)
            self._changed.notify_all()

    def wait(self, job, until=(Finish, Failure), n=1):
        def has_come():
            return sum(isinstance(e, until) for e in self.events.get(job, [])) >= n

        with self._changed:
            assert self._changed.wait_for(has_come, timeout=60)
        return self.events[job]

    def text(self, job, n=1) -> str:
        return "".join(e.text for e in self.wait(job, n=n) if isinstance(e, Token | Finish))


@pytest.fixture
def make(engine):
    """A function that makes a scheduler and its listener."""
    made = []

    def scheduler(prefix_mb=0, engine=engine, **settings):
        listener = Listener()
        memory = engine.session(1).memory()
        prefixes = PrefixCache(prefix_mb << 20, "m", memory.shared_kv_per_token)
        defaults = {"cache_bytes": 1 << 30, "max_sequences": 64, "max_waiting": 256, "cache": "f32"}
        made.append(
            Scheduler(
                engine,
                listener,
                prefixes=prefixes if prefix_mb else None,
                metrics=Metrics(),
                **{**defaults, **settings},
            )
        )
        return made[-1], listener

    yield scheduler
    for each in made:
        each.stop()


def request(engine: Engine, prompt=TEXT, max_tokens=20, seed=0, n=1, **fields) -> Request:
    tokens = engine.encode(prompt) if isinstance(prompt, str) else prompt
    sampling = tuple(engine.sampling(temperature=1.0, seed=seed + i) for i in range(n))
    return Request(
        prompt=tuple(tokens),
        max_tokens=max_tokens,
        sampling=sampling,
        stop=engine.stop_strings,
        **fields,
    )


def submit(scheduler: Scheduler, asked: Request):
    (job,) = scheduler.submit([asked])
    return job


def alone(engine: Engine, asked: Request, choice=0) -> str:
    return engine.generate(
        asked.prompt,
        max_tokens=asked.max_tokens,
        stop=asked.stop,
        sampling=asked.sampling[choice],
    )


@pytest.mark.parametrize("prefix_mb", [0, 64])
def test_output_is_independent_of_batch_composition(engine, make, prefix_mb):
    scheduler, listener = make(prefix_mb)
    asked = [
        request(engine, TEXT * (1 + i % 5) + "x" * (i % 7), max_tokens=5 + 3 * (i % 8), seed=i)
        for i in range(40)
    ]

    jobs = [submit(scheduler, each) for each in asked]

    for job, each in zip(jobs, asked, strict=True):
        assert listener.text(job) == alone(engine, each)


def test_prompts_are_prefilled_while_others_decode(engine, make):
    """While a long prompt is prefilled, a running sequence gets a token in every step."""
    scheduler, listener = make()
    writer = submit(scheduler, request(engine, "The", max_tokens=400, logit_bias=ENDLESS))
    listener.wait(writer, until=Token)

    reader = submit(scheduler, request(engine, TEXT * 60, max_tokens=1))
    listener.wait(reader)

    n_prompt = len(engine.encode(TEXT * 60))
    drawn = [job for step in listener.steps for job in step].count(writer)
    assert drawn >= n_prompt / 32
    scheduler.cancel(writer)


def test_short_prompt_does_not_wait_for_a_long_one(engine, make):
    scheduler, listener = make()
    long = submit(scheduler, request(engine, TEXT * 100, max_tokens=1))
    short = submit(scheduler, request(engine, "The", max_tokens=1))

    listener.wait(short)

    assert not any(isinstance(e, Finish) for e in listener.events.get(long, []))


def test_clients_are_scheduled_round_robin(engine, make):
    scheduler, listener = make(max_sequences=1)
    first = submit(scheduler, request(engine, max_tokens=30, client="a"))
    many = [submit(scheduler, request(engine, max_tokens=2, client="a")) for _ in range(6)]
    one = submit(scheduler, request(engine, max_tokens=2, client="b"))

    listener.wait(one)

    assert first.is_finished
    assert sum(job.is_finished for job in many) <= 1


def test_choices_share_the_prefill_of_a_prompt(engine, make):
    scheduler, listener = make()
    asked = request(engine, n=3, max_tokens=10)

    job = submit(scheduler, asked)
    events = listener.wait(job, until=Finish, n=3)

    for choice in range(3):
        text = "".join(
            e.text for e in events if isinstance(e, Token | Finish) and e.choice == choice
        )
        assert text == alone(engine, asked, choice)


def test_prefix_is_prefilled_once(engine, make):
    scheduler, listener = make(prefix_mb=64)
    asked = request(engine, TEXT * 10, max_tokens=3)
    first = submit(scheduler, asked)
    listener.wait(first)

    again = submit(scheduler, asked)
    longer = submit(scheduler, request(engine, TEXT * 11, max_tokens=3))
    listener.wait(longer)

    assert [job.n_cached_tokens for job in (first, again)] == [0, len(asked.prompt) - 1]
    assert longer.n_cached_tokens >= len(asked.prompt) - 64
    assert listener.text(again) == listener.text(first) == alone(engine, asked)


def test_conversation_resumes_at_the_end_of_the_answer(engine, make):
    scheduler, listener = make(prefix_mb=64)
    job = submit(scheduler, request(engine, TEXT, max_tokens=20))
    drawn = [e.token for e in listener.wait(job) if isinstance(e, Token)]
    prompt = [*job.request.prompt, *drawn, *engine.encode("And then")]

    on = submit(scheduler, request(engine, prompt, max_tokens=5))
    listener.wait(on)

    assert on.n_cached_tokens == len(job.request.prompt) + 19  # the last token was never fed
    assert listener.text(on) == alone(engine, on.request)


def test_third_prompt_resumes_at_the_branch_point(engine, make):
    scheduler, listener = make(prefix_mb=64)
    jobs = []
    for i in range(3):
        prompt = engine.encode(TEXT * 10) + engine.encode(f"{i} other words") * 20
        jobs.append(submit(scheduler, request(engine, prompt, max_tokens=1)))
        listener.wait(jobs[-1])

    shared = len(engine.encode(TEXT * 10))
    assert jobs[0].n_cached_tokens == jobs[1].n_cached_tokens == 0
    assert shared - 64 <= jobs[2].n_cached_tokens <= shared + 2


def test_cancelled_request_is_released_before_the_next_step(engine, make):
    scheduler, listener = make(prefix_mb=64)
    job = submit(scheduler, request(engine, "The", max_tokens=2000, logit_bias=ENDLESS))
    listener.wait(job, until=Token, n=3)

    scheduler.cancel(job)
    other = submit(scheduler, request(engine, "The", max_tokens=2))
    listener.wait(other)

    n = len(listener.events[job])
    assert job.is_finished and not scheduler.running and scheduler.reserved_bytes == 0
    listener.wait(submit(scheduler, request(engine, "The", max_tokens=2)))
    assert len(listener.events[job]) == n


def test_cancelled_request_leaves_the_queue(engine, make):
    scheduler, listener = make(max_sequences=1)
    first = submit(scheduler, request(engine, "The", max_tokens=100))
    waiting = [submit(scheduler, request(engine, max_tokens=1)) for _ in range(3)]

    scheduler.cancel(waiting[0])
    listener.wait(waiting[2])

    assert first.is_finished
    assert waiting[0] not in listener.events
    assert scheduler.n_waiting == 0


def test_full_queue_rejects(engine, make):
    scheduler, listener = make(max_sequences=1, max_waiting=2)
    running = submit(scheduler, request(engine, "The", max_tokens=2000, logit_bias=ENDLESS))
    listener.wait(running, until=Token)
    waiting = [submit(scheduler, request(engine, max_tokens=1)) for _ in range(2)]

    with pytest.raises(APIError, match="2 requests are waiting already"):
        submit(scheduler, request(engine))

    scheduler.cancel(running)
    for job in waiting:
        listener.wait(job)


def test_queue_of_size_zero_serves_single_requests(engine, make):
    scheduler, listener = make(max_sequences=1, max_waiting=0)

    for _ in range(3):
        job = submit(scheduler, request(engine, max_tokens=2))
        assert listener.text(job) == alone(engine, job.request)
        while scheduler.running:
            time.sleep(0.001)


def test_reserved_caches_stay_within_their_limit(engine, make):
    asked = [request(engine, max_tokens=30, seed=i) for i in range(12)]
    scheduler, listener = make(cache_bytes=3 * make()[0].cache_bytes_of(asked[0]))
    most = 0

    jobs = [submit(scheduler, each) for each in asked]
    while not all(job.is_finished for job in jobs):
        most = max(most, len(scheduler.running))
        assert scheduler.reserved_bytes <= scheduler.cache_bytes
    for job, each in zip(jobs, asked, strict=True):
        assert listener.text(job) == alone(engine, each)

    assert 2 <= most <= 3


def test_reserved_bytes_of_a_request_equal_those_of_its_sessions(engine, make):
    scheduler, _ = make()

    for max_tokens in (1, 30, 1000):
        asked = request(engine, max_tokens=max_tokens, n=2)
        session = engine.session(asked.n_tokens)
        assert scheduler.cache_bytes_of(asked) == 2 * session.memory().total


@pytest.mark.parametrize("attention", ["index:128", "index:2048", "index:8192"])
def test_reserved_bytes_of_a_request_include_a_block_index(make, attention):
    engine = Engine.load(threads=1, attention=attention)
    scheduler, _ = make(engine=engine, cache="int4")

    for max_tokens in (1, 30, 1000, 8000, 100_000):
        asked = request(engine, max_tokens=max_tokens, n=2)
        needed = 2 * engine.session(asked.n_tokens, "int4").memory().total
        assert scheduler.cache_bytes_of(asked) == needed


def test_timed_out_request_fails_alone(engine, make):
    scheduler, listener = make()
    late = submit(
        scheduler, request(engine, "The", max_tokens=5000, timeout_s=0.1, logit_bias=ENDLESS)
    )
    other = submit(scheduler, request(engine, max_tokens=20))

    events = listener.wait(late, until=Failure)

    assert events[-1].error.code == "timeout"
    assert "request fewer tokens" in str(events[-1].error)
    assert events[-1].error.retry_after is None
    assert listener.text(other) == alone(engine, other.request)


def test_request_that_times_out_in_the_queue_gets_retry_after(engine, make):
    scheduler, listener = make(max_sequences=1)
    first = submit(scheduler, request(engine, "The", max_tokens=100_000, logit_bias=ENDLESS))
    late = submit(scheduler, request(engine, timeout_s=0.1))

    events = listener.wait(late, until=Failure)

    scheduler.cancel(first)
    assert "still queued after the limit of 0.1 s" in str(events[-1].error)
    assert events[-1].error.retry_after == 5


def test_requests_fail_when_the_scheduler_stops(engine, make):
    scheduler, listener = make(max_sequences=1)
    jobs = [
        submit(scheduler, request(engine, "The", max_tokens=5000, logit_bias=ENDLESS))
        for _ in range(3)
    ]
    listener.wait(jobs[0], until=Token)

    scheduler.stop()

    for job in jobs:
        assert listener.events[job][-1].error.code == "shutting_down"
    with pytest.raises(APIError, match="shutting down"):
        submit(scheduler, request(engine))


def test_out_of_memory_fails_the_request_alone(engine, make, monkeypatch):
    scheduler, listener = make()
    real = engine.session

    def session(max_tokens, cache="f32"):
        if max_tokens > 10_000:
            raise MemoryError
        return real(max_tokens, cache)

    monkeypatch.setattr(engine, "session", session)
    hungry = submit(scheduler, request(engine, max_tokens=20_000))
    other = submit(scheduler, request(engine, max_tokens=10))

    assert listener.wait(hungry)[-1].error.status == 503
    monkeypatch.undo()
    assert listener.text(other) == alone(engine, other.request)
    assert scheduler.reserved_bytes == 0


@pytest.mark.parametrize("broken", ["step", "session"])
def test_exception_fails_its_requests_alone(engine, make, monkeypatch, broken):
    scheduler, listener = make()

    def fail(*args, **kwargs):
        raise RuntimeError("broken")

    monkeypatch.setattr(engine, broken, fail)
    job = submit(scheduler, request(engine))
    events = listener.wait(job, until=Failure)
    monkeypatch.undo()

    assert not isinstance(events[-1].error, APIError)
    other = submit(scheduler, request(engine))
    assert listener.text(other) == alone(engine, other.request)
    assert scheduler.reserved_bytes == 0


def test_prefilled_event_precedes_the_first_token(engine, make):
    scheduler, listener = make()

    events = listener.wait(submit(scheduler, request(engine, max_tokens=3)))

    assert isinstance(events[0], Prefilled)
    assert [type(e) for e in events[1:]] == [Token, Token, Token, Finish]


@pytest.mark.parametrize("wait_s, n_deliveries", [(0.0, range(9, 12)), (60.0, range(2, 3))])
def test_fast_tokens_are_delivered_in_batches(engine, make, monkeypatch, wait_s, n_deliveries):
    """Except the first, and the last ones of a complete sequence."""
    monkeypatch.setattr("yocobit.serving.runtime.scheduler.DELIVERY_INTERVAL_S", wait_s)
    scheduler, listener = make()
    asked = request(engine, max_tokens=10)

    job = submit(scheduler, asked)

    assert listener.text(job) == alone(engine, asked)
    assert len(listener.steps) in n_deliveries
