"""The scheduler: order, limits, and output that is independent of batch composition."""

from __future__ import annotations

import threading
import time

import pytest
from servers import NO_END, wait_for

from yocobit import Engine
from yocobit.mixers import FEED_FORWARDS, FeedForwardSpec
from yocobit.serving.errors import APIError
from yocobit.serving.runtime import scheduler as scheduler_module
from yocobit.serving.runtime import slow_sequences
from yocobit.serving.runtime.metrics import Metrics
from yocobit.serving.runtime.prefix_cache import PrefixCache
from yocobit.serving.runtime.request import Failure, Finish, Prefilled, Request, Token
from yocobit.serving.runtime.scheduler import Scheduler

TEXT = "And God said, Let there be light: and there was light. And God saw the light. "
ENDLESS = {int(token): bias for token, bias in NO_END.items()}


class Listener:
    """Collects events by request."""

    def __init__(self) -> None:
        self.events: dict = {}
        self.steps: list = []  # groups of each delivery
        self._changed = threading.Condition()

    def __call__(self, batches) -> None:
        with self._changed:
            self.steps.append([group for group, _ in batches])
            for group, events in batches:
                self.events.setdefault(group, []).extend(events)
            self._changed.notify_all()

    def wait(self, group, until=(Finish, Failure), n=1):
        def has_arrived():
            return sum(isinstance(e, until) for e in self.events.get(group, [])) >= n

        with self._changed:
            assert self._changed.wait_for(has_arrived, timeout=60)
        return self.events[group]

    def text(self, group, n=1) -> str:
        return "".join(e.text for e in self.wait(group, n=n) if isinstance(e, Token | Finish))


@pytest.fixture
def make(engine):
    """Return a function that makes a scheduler and its listener."""
    made = []

    def scheduler(prefix_mb=0, engine=engine, **settings):
        listener = Listener()
        memory = engine.session(1, "f32").memory()
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


def make_request(engine: Engine, prompt=TEXT, max_tokens=20, seed=0, n=1, **fields) -> Request:
    tokens = engine.encode(prompt) if isinstance(prompt, str) else prompt
    sampling = tuple(engine.sampling(temperature=1.0, seed=seed + i) for i in range(n))
    return Request(
        prompt=tuple(tokens),
        max_tokens=max_tokens,
        sampling=sampling,
        stop=engine.stop_strings,
        **fields,
    )


def submit(scheduler: Scheduler, request: Request):
    (group,) = scheduler.submit([request])
    return group


def alone(engine: Engine, request: Request, choice=0) -> str:
    return engine.generate(
        request.prompt,
        max_tokens=request.max_tokens,
        stop=request.stop,
        cache="f32",
        sampling=request.sampling[choice],
    )


@pytest.mark.parametrize("prefix_mb", [0, 64])
def test_output_is_independent_of_batch_composition(engine, make, prefix_mb):
    scheduler, listener = make(prefix_mb)
    requests = [
        make_request(engine, TEXT * (1 + i % 5) + "x" * (i % 7), max_tokens=5 + 3 * (i % 8), seed=i)
        for i in range(40)
    ]

    groups = [submit(scheduler, each) for each in requests]

    for group, each in zip(groups, requests, strict=True):
        assert listener.text(group) == alone(engine, each)


def test_prompts_are_prefilled_while_others_decode(engine, make):
    """While a long prompt is prefilled, a running sequence gets a token in every step."""
    scheduler, listener = make()
    decoding = submit(scheduler, make_request(engine, "The", max_tokens=400, logit_bias=ENDLESS))
    listener.wait(decoding, until=Token)

    long = submit(scheduler, make_request(engine, TEXT * 60, max_tokens=1))
    listener.wait(long)

    n_prompt = len(engine.encode(TEXT * 60))
    n_steps = [group for step in listener.steps for group in step].count(decoding)
    assert n_steps >= n_prompt / 32
    scheduler.cancel(decoding)


def test_idle_step_prefills_as_many_tokens_as_a_forward_pass_has(engine, make, monkeypatch):
    moe = FeedForwardSpec("", has_gate=True, has_sub_norm=True, max_batch_tokens=200)
    monkeypatch.setitem(FEED_FORWARDS, engine.config.ffn, moe)
    sizes = []

    def step(sessions, tokens, out, prompts=()):
        sizes.append(sum(len(chunk) for _, chunk in prompts))
        return type(engine).step(engine, sessions, tokens, out, prompts)

    monkeypatch.setattr(engine, "step", step)
    scheduler, listener = make()

    listener.wait(submit(scheduler, make_request(engine, TEXT * 60, max_tokens=1)))

    assert max(sizes) == 200


def test_short_prompt_does_not_wait_for_a_long_one(engine, make):
    scheduler, listener = make()
    long = submit(scheduler, make_request(engine, TEXT * 100, max_tokens=1))
    short = submit(scheduler, make_request(engine, "The", max_tokens=1))

    listener.wait(short)

    assert not any(isinstance(e, Finish) for e in listener.events.get(long, []))


def test_clients_are_scheduled_round_robin(engine, make):
    scheduler, listener = make(max_sequences=1)
    many = [make_request(engine, max_tokens=2, client="a") for _ in range(7)]
    *_, one = scheduler.submit([*many, make_request(engine, max_tokens=2, client="b")])

    listener.wait(one)

    assert list(listener.events).index(one) == 1  # in the order in which they started


def test_choices_share_the_prefill_of_a_prompt(engine, make):
    scheduler, listener = make()
    request = make_request(engine, n=3, max_tokens=10)

    group = submit(scheduler, request)
    events = listener.wait(group, until=Finish, n=3)

    for choice in range(3):
        text = "".join(
            e.text for e in events if isinstance(e, Token | Finish) and e.choice == choice
        )
        assert text == alone(engine, request, choice)


def test_prefix_is_prefilled_once(engine, make):
    scheduler, listener = make(prefix_mb=64)
    request = make_request(engine, TEXT * 10, max_tokens=3)
    first = submit(scheduler, request)
    listener.wait(first)

    again = submit(scheduler, request)
    longer = submit(scheduler, make_request(engine, TEXT * 11, max_tokens=3))
    listener.wait(longer)

    assert [group.n_cached_tokens for group in (first, again)] == [0, len(request.prompt) - 1]
    assert longer.n_cached_tokens >= len(request.prompt) - 64
    assert listener.text(again) == listener.text(first) == alone(engine, request)


def test_conversation_resumes_at_the_end_of_the_answer(engine, make):
    scheduler, listener = make(prefix_mb=64)
    group = submit(scheduler, make_request(engine, TEXT, max_tokens=20))
    generated = [e.token for e in listener.wait(group) if isinstance(e, Token)]
    prompt = [*group.request.prompt, *generated, *engine.encode("And then")]

    resumed = submit(scheduler, make_request(engine, prompt, max_tokens=5))
    listener.wait(resumed)

    # The last generated token was never the input of a step.
    assert resumed.n_cached_tokens == len(group.request.prompt) + 19
    assert listener.text(resumed) == alone(engine, resumed.request)


def test_third_prompt_resumes_at_the_branch_point(engine, make):
    scheduler, listener = make(prefix_mb=64)
    groups = []
    for i in range(3):
        prompt = engine.encode(TEXT * 10) + engine.encode(f"{i} other words") * 20
        groups.append(submit(scheduler, make_request(engine, prompt, max_tokens=1)))
        listener.wait(groups[-1])

    shared = len(engine.encode(TEXT * 10))
    assert groups[0].n_cached_tokens == groups[1].n_cached_tokens == 0
    assert shared - 64 <= groups[2].n_cached_tokens <= shared + 2


def test_cancelled_request_is_released_before_the_next_step(engine, make):
    scheduler, listener = make(prefix_mb=64)
    group = submit(scheduler, make_request(engine, "The", max_tokens=2000, logit_bias=ENDLESS))
    listener.wait(group, until=Token, n=3)

    scheduler.cancel(group)
    other = submit(scheduler, make_request(engine, "The", max_tokens=2))
    listener.wait(other)

    n = len(listener.events[group])
    assert group.is_finished and not scheduler.running and scheduler.memory.reserved_bytes == 0
    listener.wait(submit(scheduler, make_request(engine, "The", max_tokens=2)))
    assert len(listener.events[group]) == n


def test_cancelled_request_leaves_the_queue(engine, make):
    scheduler, listener = make(max_sequences=1)
    first = submit(scheduler, make_request(engine, "The", max_tokens=100))
    waiting = [submit(scheduler, make_request(engine, max_tokens=1)) for _ in range(3)]

    scheduler.cancel(waiting[0])
    listener.wait(waiting[2])

    assert first.is_finished
    assert waiting[0] not in listener.events
    assert scheduler.n_waiting == 0


def test_full_queue_rejects(engine, make):
    scheduler, listener = make(max_sequences=1, max_waiting=2)
    running = submit(scheduler, make_request(engine, "The", max_tokens=2000, logit_bias=ENDLESS))
    listener.wait(running, until=Token)
    waiting = [submit(scheduler, make_request(engine, max_tokens=1)) for _ in range(2)]

    with pytest.raises(APIError, match="2 requests are waiting already"):
        submit(scheduler, make_request(engine))

    scheduler.cancel(running)
    for group in waiting:
        listener.wait(group)


def test_queue_of_size_zero_serves_single_requests(engine, make):
    scheduler, listener = make(max_sequences=1, max_waiting=0)

    for _ in range(3):
        group = submit(scheduler, make_request(engine, max_tokens=2))
        assert listener.text(group) == alone(engine, group.request)
        wait_for(lambda: not scheduler.running)


def test_reserved_caches_stay_within_their_limit(engine, make):
    requests = [make_request(engine, max_tokens=30, seed=i) for i in range(12)]
    scheduler, listener = make(cache_bytes=3 * make()[0].session_bytes(requests[0].n_tokens))
    most_running = 0

    groups = [submit(scheduler, each) for each in requests]
    while not all(group.is_finished for group in groups):
        most_running = max(most_running, len(scheduler.running))
        assert scheduler.memory.reserved_bytes <= scheduler.memory.n_bytes
    for group, each in zip(groups, requests, strict=True):
        assert listener.text(group) == alone(engine, each)

    assert 2 <= most_running <= 3


def test_reserved_bytes_of_a_sequence_equal_those_of_its_session(engine, make):
    scheduler, _ = make()

    for max_tokens in (1, 30, 1000):
        n_tokens = make_request(engine, max_tokens=max_tokens).n_tokens
        session = engine.session(n_tokens, "f32")
        assert scheduler.session_bytes(n_tokens) == session.memory().total


@pytest.mark.parametrize("attention", ["index:128", "index:2048", "index:8192"])
def test_reserved_bytes_of_a_sequence_include_a_block_index(make, attention):
    engine = Engine.load(threads=1, attention=attention)
    scheduler, _ = make(engine=engine, cache="int4")

    for max_tokens in (1, 30, 1000, 8000, 100_000):
        n_tokens = make_request(engine, max_tokens=max_tokens).n_tokens
        needed = engine.session(n_tokens, "int4").memory().total
        assert scheduler.session_bytes(n_tokens) == needed


def test_timed_out_request_fails_alone(engine, make):
    scheduler, listener = make()
    late = submit(
        scheduler, make_request(engine, "The", max_tokens=5000, timeout_s=0.1, logit_bias=ENDLESS)
    )
    other = submit(scheduler, make_request(engine, max_tokens=20))

    events = listener.wait(late, until=Failure)

    assert events[-1].error.code == "timeout"
    assert "request fewer tokens" in str(events[-1].error)
    assert events[-1].error.retry_after is None
    assert listener.text(other) == alone(engine, other.request)


def test_request_that_times_out_in_the_queue_gets_retry_after(engine, make):
    scheduler, listener = make(max_sequences=1)
    first = submit(scheduler, make_request(engine, "The", max_tokens=100_000, logit_bias=ENDLESS))
    late = submit(scheduler, make_request(engine, timeout_s=0.1))

    events = listener.wait(late, until=Failure)

    scheduler.cancel(first)
    assert "still queued after the limit of 0.1 s" in str(events[-1].error)
    assert events[-1].error.retry_after == 5


def test_requests_fail_when_the_scheduler_stops(engine, make):
    scheduler, listener = make(max_sequences=1)
    groups = [
        submit(scheduler, make_request(engine, "The", max_tokens=5000, logit_bias=ENDLESS))
        for _ in range(3)
    ]
    listener.wait(groups[0], until=Token)

    scheduler.stop()

    for group in groups:
        assert listener.events[group][-1].error.code == "shutting_down"
    with pytest.raises(APIError, match="shutting down"):
        submit(scheduler, make_request(engine))


def test_out_of_memory_fails_the_request_alone(engine, make, monkeypatch):
    scheduler, listener = make()
    real = engine.session

    def session(max_tokens, cache="f32"):
        if max_tokens > 10_000:
            raise MemoryError
        return real(max_tokens, cache)

    monkeypatch.setattr(engine, "session", session)
    large = submit(scheduler, make_request(engine, max_tokens=20_000))
    other = submit(scheduler, make_request(engine, max_tokens=10))

    assert listener.wait(large)[-1].error.status == 503
    monkeypatch.undo()
    assert listener.text(other) == alone(engine, other.request)
    assert scheduler.memory.reserved_bytes == 0


@pytest.mark.parametrize("broken", ["step", "session"])
def test_exception_fails_its_requests_alone(engine, make, monkeypatch, broken):
    scheduler, listener = make()

    def fail(*args, **kwargs):
        raise RuntimeError("broken")

    monkeypatch.setattr(engine, broken, fail)
    group = submit(scheduler, make_request(engine))
    events = listener.wait(group, until=Failure)
    monkeypatch.undo()

    assert not isinstance(events[-1].error, APIError)
    other = submit(scheduler, make_request(engine))
    assert listener.text(other) == alone(engine, other.request)
    assert scheduler.memory.reserved_bytes == 0


def test_prefilled_event_precedes_the_first_token(engine, make):
    scheduler, listener = make()

    events = listener.wait(submit(scheduler, make_request(engine, max_tokens=3)))

    assert isinstance(events[0], Prefilled)
    assert [type(e) for e in events[1:]] == [Token, Token, Token, Finish]


@pytest.mark.parametrize("wait_s, n_deliveries", [(0.0, range(9, 12)), (60.0, range(2, 3))])
def test_fast_tokens_are_delivered_in_batches(engine, make, monkeypatch, wait_s, n_deliveries):
    """The first token, and the last ones of a complete sequence, are delivered at once."""
    monkeypatch.setattr("yocobit.serving.runtime.scheduler.DELIVERY_INTERVAL_S", wait_s)
    scheduler, listener = make()
    request = make_request(engine, max_tokens=10)

    group = submit(scheduler, request)

    assert listener.text(group) == alone(engine, request)
    assert len(listener.steps) in n_deliveries


class SlowGrammar:
    """Guided decoding whose every step takes CPU time."""

    def __init__(self, steps: list[str]) -> None:
        self._steps = steps

    def mask(self, logits):
        self._steps.append("slow")
        end_s = time.thread_time() + 2 * slow_sequences.SLOW_S
        while time.thread_time() < end_s:
            pass
        return logits

    def force_completion(self, token, n_left):
        return 300

    def accept(self, token):
        return False


def test_slow_sequences_take_turns_and_leave_time_to_others(engine, make, monkeypatch):
    monkeypatch.setattr(slow_sequences, "SLOW_SHARE", 1 << 30)  # no second turn while others run
    scheduler, listener = make()
    steps: list[str] = []
    slow = [
        submit(scheduler, make_request(engine, max_tokens=20, guided=lambda: SlowGrammar(steps)))
        for _ in range(3)
    ]
    for group in slow:
        listener.wait(group, until=Token)  # the first step of each is not known to be slow
    n_before = len(steps)

    fast = submit(scheduler, make_request(engine, max_tokens=200, logit_bias=ENDLESS))
    listener.wait(fast)
    n_during = len(steps) - n_before
    for group in slow:
        listener.wait(group)

    assert fast.n_generated == 200
    assert n_during < 60  # one turn, and those before the request was seen
    assert [group.n_generated for group in slow] == [20] * 3


def test_output_of_a_slow_sequence_does_not_depend_on_its_turns(engine, make, monkeypatch):
    monkeypatch.setattr(slow_sequences, "SLOW_S", 0.0)  # every sequence is slow
    scheduler, listener = make()
    requests = [make_request(engine, max_tokens=30, seed=i) for i in range(4)]

    groups = [submit(scheduler, request) for request in requests]

    assert [listener.text(group) for group in groups] == [alone(engine, r) for r in requests]


def test_endless_step_is_stuck_and_does_not_delay_the_end(engine, make, monkeypatch):
    is_over, is_inside = threading.Event(), threading.Event()

    def step(*_):
        is_inside.set()
        is_over.wait()

    scheduler, _ = make()
    assert not scheduler.is_stuck
    with monkeypatch.context() as patch:
        patch.setattr(scheduler, "_step", step)
        submit(scheduler, make_request(engine))
        is_inside.wait()
        assert not scheduler.is_stuck
        patch.setattr(scheduler_module, "STUCK_S", 0.0)

        assert scheduler.is_stuck
        scheduler.stop(timeout_s=0.01)
        assert scheduler.is_alive
    is_over.set()


def test_idle_scheduler_is_not_stuck(engine, make, monkeypatch):
    scheduler, listener = make()
    listener.wait(submit(scheduler, make_request(engine, max_tokens=1)))
    wait_for(lambda: scheduler._step_started_at is None)
    monkeypatch.setattr(scheduler_module, "STUCK_S", 0.0)

    assert not scheduler.is_stuck


def test_time_limit_counts_from_arrival(engine, make):
    scheduler, listener = make()
    request = make_request(engine, timeout_s=100.0)

    (group,) = scheduler.submit([request], arrived_at=time.monotonic() - 101)

    (failure,) = listener.wait(group, until=Failure)
    assert failure.error.status == 504
