"""The scheduler: continuous batching with chunked prefill.

One thread owns the engine. Each step decodes one token per running sequence and prefills a chunk of
the waiting prompts, in one pass over the weights. Batch composition only decides when a token is
computed, never its value.

A session's buffers are virtual memory of its full length, which the system commits page by page as
positions arrive. So a request reserves the memory of its positions so far, in blocks of GROWTH. If
the next block does not fit, the youngest running request is preempted: its sessions are freed, and
it waits to be prefilled again, from the prefix cache where possible. The oldest request is never
preempted, because every request fits alone.

Letters: V vocabulary
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yocobit.costs import committed_bytes, session_bytes
from yocobit.engine import Engine, FileChangedError
from yocobit.engine.sampling import sample_batch
from yocobit.engine.session import CacheType, Logits
from yocobit.hardware.host import trim_heap
from yocobit.serving.errors import (
    APIError,
    internal_error,
    out_of_memory,
    queue_full,
    shutting_down,
    timed_out,
)
from yocobit.serving.runtime.metrics import Metrics, RequestStats, SchedulerStats
from yocobit.serving.runtime.prefix_cache import PrefixCache
from yocobit.serving.runtime.request import Event, Failure, Request
from yocobit.serving.runtime.sequence import Sequence as DecodingSequence
from yocobit.serving.runtime.sequence import SequenceGroup

# Prompt tokens per step: fewer while other sequences decode, which bounds their inter-token time.
PREFILL_TOKENS, PREFILL_TOKENS_WHILE_DECODING = 128, 32
GROWTH = 64  # positions that a sequence reserves at a time
# Freed buffers below a megabyte stay in the heap; they are returned to the system after this part
# of the cache memory was freed.
TRIM_SHARE = 8
# Events wait this long for more: waking the event loop takes a CPU from the engine for longer than
# a small model needs for a token.
DELIVERY_INTERVAL_S = 0.004
# A step that takes longer is stuck: a prefill of 128 tokens takes seconds on the slowest CPUs.
STUCK_S = 120.0
# A sequence is slow if its own work in a step (grammar, text) takes more CPU time than SLOW_S. Slow
# sequences take turns while others run, for at most 1 / SLOW_SHARE of the time. Each sequence is
# timed only after a step in which all of them together took SLOW_S: reading the clock is a system
# call.
SLOW_S, SLOW_SHARE = 0.002, 5

Deliver = Callable[[Sequence[tuple[SequenceGroup, list[Event]]]], None]

logger = logging.getLogger(__name__)


class Scheduler:
    """Runs requests. Its methods may be called from any thread."""

    def __init__(
        self,
        engine: Engine,
        deliver: Deliver,
        *,
        cache: CacheType,
        cache_bytes: int,
        max_sequences: int,
        max_waiting: int,
        prefixes: PrefixCache | None,
        metrics: Metrics,
    ) -> None:
        """Start the scheduler's thread, which calls `deliver` with the events of its steps.

        `cache_bytes` bounds the KV caches and states of at most `max_sequences` sequences at a
        time; at most `max_waiting` requests are queued.
        """
        self.engine = engine
        self.cache: CacheType = cache
        self.cache_bytes = cache_bytes
        self.max_waiting = max_waiting
        self.prefixes = prefixes
        self.reserved_bytes = 0
        self.running: list[SequenceGroup] = []
        self._n_submitted = 0
        self._freed_bytes = 0  # since the heap was trimmed
        self._deliver = deliver
        self._metrics = metrics
        self._max_sequences = max_sequences
        self._waiting: dict[str, deque[SequenceGroup]] = {}  # by client, in round-robin order
        self._logits = np.empty((max_sequences, engine.config.vocab_size), dtype=np.float32)
        self._events: list[tuple[SequenceGroup, list[Event]]] = []
        self._delivered_at = 0.0
        self._committed_bytes = functools.lru_cache(1 << 12)(
            functools.partial(committed_bytes, engine.config, cache)
        )
        self._changed = threading.Condition()
        self._stopping = False
        self.problem: str | None = None  # why no request can be run any more
        self._step_started_at: float | None = None  # None while there is no work
        self._next_slow_at = 0.0
        self._is_timed = True  # measure each sequence in the next step
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    @property
    def n_waiting(self) -> int:
        return sum(len(groups) for groups in list(self._waiting.values()))

    @property
    def n_sequences(self) -> int:
        """Sequences in prefill or decode."""
        return sum(len(group.request.sampling) for group in list(self.running))

    @property
    def is_alive(self) -> bool:
        """Whether the scheduler's thread runs."""
        return self._thread.is_alive()

    @property
    def is_stuck(self) -> bool:
        """Whether the present step takes longer than any step should."""
        started_at = self._step_started_at
        return started_at is not None and time.monotonic() - started_at > STUCK_S

    def stats(self) -> SchedulerStats:
        """Return a snapshot of the scheduler."""
        return SchedulerStats(
            n_running=len(self.running),
            n_waiting=self.n_waiting,
            reserved_bytes=self.reserved_bytes,
            cache_bytes=self.cache_bytes,
            prefix_bytes=self.prefixes.size if self.prefixes else 0,
        )

    def session_bytes(self, n_tokens: int) -> int:
        """Return the bytes of KV caches and states of one sequence."""
        return session_bytes(self.engine.config, self.cache, n_tokens)

    def check_capacity(self, n_requests: int) -> None:
        """APIError 429 if `n_requests` more do not fit the queue, 503 after `stop`."""
        if self._stopping:
            raise shutting_down()
        n_free = max(0, self._max_sequences - self.n_sequences)
        if self.n_waiting + n_requests > self.max_waiting + n_free:
            raise queue_full(self.n_waiting)

    def submit(
        self, requests: Sequence[Request], arrived_at: float | None = None
    ) -> list[SequenceGroup]:
        """Queue requests, all or none; raises the errors of `check_capacity`.

        Their time limit counts from their arrival, by default now.
        """
        arrived_at = time.monotonic() if arrived_at is None else arrived_at
        groups = [SequenceGroup(request, self.engine, arrived_at) for request in requests]
        with self._changed:
            self.check_capacity(len(groups))
            for group in groups:
                self._n_submitted += 1
                group.number = self._n_submitted
                self._waiting.setdefault(group.request.client, deque()).append(group)
            self._changed.notify()
        return groups

    def cancel(self, group: SequenceGroup) -> None:
        """Cancel a request before the next step, unless it is finished."""
        with self._changed:
            group.is_cancelled = not group.is_finished
            self._changed.notify()

    def begin_stop(self) -> None:
        """Have the thread stop after this step; unfinished requests fail with 503."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def stop(self, timeout_s: float | None = None) -> None:
        """Stop after this step; a step that takes longer than `timeout_s` is abandoned."""
        self.begin_stop()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while self._schedule():
                pass
        except FileChangedError as error:
            self.problem = str(error)
        except BaseException:  # a bug; clients must not wait for a dead thread
            logger.exception("the scheduler failed")
        with self._changed:
            self._stopping = True
            unfinished = [*self.running, *self._queued()]
            self._waiting.clear()
        for group in unfinished:
            self._fail(group, shutting_down())
        self._flush()

    def _schedule(self) -> bool:
        """Wait for work and run one step; return False once stopped."""
        with self._changed:
            self._step_started_at = None
            while not (self.running or self._waiting or self._stopping):
                self._changed.wait()
            self._step_started_at = time.monotonic()
            if self._stopping:
                return False
            expired = self._take_expired()
        for group in expired:
            if group.is_cancelled:
                self._finish(group, "cancelled")
            else:
                self._fail(group, timed_out(group.request.timeout_s, group.started_at > 0))
        self._grow()
        with self._changed:
            admitted = self._admit()
        self.engine.check_file()
        for group in admitted:
            self._isolate(group, group.start, self.cache, self.prefixes)
        try:
            self._step()
        except Exception as error:  # a bug; all requests of the step fail, later ones may succeed
            logger.exception("step failed")
            for group in list(self.running):
                self._fail(group, error)
        is_due = time.monotonic() - self._delivered_at >= DELIVERY_INTERVAL_S
        if is_due or any(group.is_finished for group, _ in self._events):
            self._flush()
        return True

    def _queued(self) -> list[SequenceGroup]:
        return [group for groups in self._waiting.values() for group in groups]

    def _take_expired(self) -> list[SequenceGroup]:
        """Return requests that were cancelled or timed out, and remove them from the queue."""
        now = time.monotonic()
        expired = [
            group
            for group in [*self.running, *self._queued()]
            if group.is_cancelled or now > group.deadline
        ]
        for client, groups in list(self._waiting.items()):
            self._waiting[client] = deque(group for group in groups if group not in expired)
            if not self._waiting[client]:
                del self._waiting[client]
        return expired

    def _grow(self) -> None:
        """Reserve the next block of requests that reached the end of theirs, the oldest first.

        If it does not fit, the youngest running requests are preempted.
        """
        growing = [group for group in self.running if group.n_positions >= group.reserved_tokens]
        for group in sorted(growing, key=_number):
            n_tokens = _tokens_to_reserve(group)
            n_bytes = self._group_bytes(group, n_tokens) - group.reserved_bytes
            while group in self.running and self.reserved_bytes + n_bytes > self.cache_bytes:
                self._preempt(max(self.running, key=_number))
            if group in self.running:
                self._reserve(group, n_tokens)

    def _preempt(self, group: SequenceGroup) -> None:
        """Free the sessions of a running request, and put it at the front of the queue."""
        self._store_prefixes(group)
        group.preempt()
        self._free(group)
        self._metrics.preemptions.inc()
        client = group.request.client
        with self._changed:
            self.running.remove(group)
            groups = self._waiting.pop(client, deque())
            groups.appendleft(group)
            self._waiting = {client: groups, **self._waiting}

    def _reserve(self, group: SequenceGroup, n_tokens: int) -> None:
        """Reserve the memory of n_tokens positions of each choice."""
        n_bytes = self._group_bytes(group, n_tokens)
        self.reserved_bytes += n_bytes - group.reserved_bytes
        group.reserved_tokens, group.reserved_bytes = n_tokens, n_bytes

    def _free(self, group: SequenceGroup) -> None:
        """Subtract the reserved memory of a request whose sessions were released."""
        self.reserved_bytes -= group.reserved_bytes
        self._freed_bytes += group.reserved_bytes
        group.reserved_tokens = group.reserved_bytes = 0
        if TRIM_SHARE * self._freed_bytes > self.cache_bytes:
            self._freed_bytes = 0
            trim_heap()

    def _group_bytes(self, group: SequenceGroup, n_tokens: int) -> int:
        """Return the bytes of n_tokens positions of each choice."""
        most = group.request.n_tokens
        each = self._committed_bytes(min(n_tokens, most), most)
        return len(group.request.sampling) * each

    def _admit(self) -> list[SequenceGroup]:
        """Start queued requests whose caches fit, round-robin over the clients."""
        admitted: list[SequenceGroup] = []
        while self._waiting:
            client, groups = next(iter(self._waiting.items()))
            group = groups[0]
            if not self._fits(group):
                break
            groups.popleft()
            del self._waiting[client]  # reinserted behind the other clients
            if groups:
                self._waiting[client] = groups
            self._reserve(group, _tokens_to_reserve(group))
            self.running.append(group)
            admitted.append(group)
        return admitted

    def _fits(self, group: SequenceGroup) -> bool:
        """Whether a request fits the free sequences and cache memory.

        If others run, all must have room for one more block: otherwise a preempted request would
        be prefilled only to be preempted again.
        """
        if self.n_sequences + len(group.request.sampling) > self._max_sequences:
            return False
        n_tokens = _tokens_to_reserve(group)
        if not self.running:
            return self._group_bytes(group, n_tokens) <= self.cache_bytes
        if self.reserved_bytes + self._group_bytes(group, n_tokens) > self.cache_bytes:
            return False  # the usual case with a full cache, at less cost than the sum below
        grown = [(each, each.reserved_tokens + GROWTH) for each in self.running]
        grown.append((group, n_tokens + GROWTH))
        return sum(self._group_bytes(*each) for each in grown) <= self.cache_bytes

    def _step(self) -> None:
        """Decode one token per running sequence and prefill a chunk of the prompts."""
        decoding = [
            (group, sequence)
            for group in self.running
            if group.is_decoding
            for sequence in group.sequences
            if not sequence.is_finished
        ]
        chunks = self._next_chunks(PREFILL_TOKENS_WHILE_DECODING if decoding else PREFILL_TOKENS)
        decoding = self._take_turns(decoding, is_shared=bool(chunks))
        if decoding or chunks:
            logits = self._logits[: len(decoding)]
            self.engine.step(
                [sequence.session for _, sequence in decoding],
                [sequence.next_token for _, sequence in decoding],
                logits,
                [(group.session, chunk) for group, chunk in chunks],
            )
            self._sample(decoding, logits)
        for group, _ in chunks:
            self._isolate(group, group.finish_chunk, self.prefixes)
        for group in list(self.running):
            if events := group.take_events():
                self._events.append((group, events))
            if group.is_decoding and all(sequence.is_finished for sequence in group.sequences):
                self._finish(group, group.finish_reason)

    def _next_chunks(self, n_tokens: int) -> list[tuple[SequenceGroup, NDArray[np.int32]]]:
        """Return the prompt chunks of a step, at most `n_tokens` in total, round-robin."""
        chunks: list[tuple[SequenceGroup, NDArray[np.int32]]] = []
        for group in [group for group in self.running if not group.is_decoding]:
            if n_tokens <= 0:
                break
            if group.needs_fork:
                self._isolate(group, group.fork)
            elif group.needs_all_layers:
                self._isolate(group, group.prefill_all_layers, n_tokens)
                n_tokens = 0
            else:
                chunk = group.next_chunk(n_tokens)
                n_tokens -= len(chunk)
                chunks.append((group, chunk))
            if group in self.running:  # behind the others
                self.running.remove(group)
                self.running.append(group)
        return chunks

    def _take_turns(
        self, decoding: list[tuple[SequenceGroup, DecodingSequence]], is_shared: bool
    ) -> list[tuple[SequenceGroup, DecodingSequence]]:
        """Return the sequences to decode in this step, at most one slow one among them.

        A slow one waits while it would slow down others: sequences that are not slow, or prefills
        if `is_shared`. The tokens of a sequence do not depend on the steps that decode it.
        """
        slow = [each for each in decoding if each[1].step_s > SLOW_S]
        if not slow:
            return decoding
        others = [each for each in decoding if each[1].step_s <= SLOW_S]
        if (others or is_shared) and time.monotonic() < self._next_slow_at:
            return others
        return [*others, min(slow, key=lambda each: each[1].stepped_at)]

    def _sample(
        self, decoding: Sequence[tuple[SequenceGroup, DecodingSequence]], logits: Logits
    ) -> None:
        """Sample the next token of each sequence from its row of logits, and append it."""
        masked: list[tuple[SequenceGroup, DecodingSequence, Logits, Logits]] = []

        def mask(group: SequenceGroup, sequence: DecodingSequence, row: Logits) -> None:
            masked.append((group, sequence, row, sequence.state.mask(row)))

        clock = time.thread_time if self._is_timed else _no_time
        started_s = time.thread_time()
        for (group, sequence), row in zip(decoding, logits, strict=True):
            if not group.is_finished:
                sequence.step_s = -clock()
                self._isolate(group, mask, group, sequence, row)
                sequence.step_s += clock()
        masked_s = time.thread_time()
        samplers = [sequence.state.sampler for _, sequence, _, _ in masked]
        tokens = sample_batch(samplers, [row for _, _, _, row in masked])
        sampled_s = time.thread_time()
        for (group, sequence, row, _), token in zip(masked, tokens, strict=True):
            if not group.is_finished:
                sequence.step_s -= clock()
                self._isolate(group, sequence.append, token, row)
                sequence.step_s += clock()
                if sequence.step_s > SLOW_S:
                    sequence.stepped_at = time.monotonic()
                    wait_s = (SLOW_SHARE - 1) * sequence.step_s
                    self._next_slow_at = sequence.stepped_at + wait_s
        own_s = masked_s - started_s + time.thread_time() - sampled_s
        self._is_timed = own_s > SLOW_S or any(
            sequence.step_s > SLOW_S for group in self.running for sequence in group.sequences
        )

    def _isolate(self, group: SequenceGroup, work: Callable[..., None], *arguments: Any) -> None:
        """Run work of one request; an exception fails that request alone."""
        try:
            work(*arguments)
        except MemoryError:
            self._fail(group, out_of_memory())
        except Exception as error:
            logger.exception("request failed")
            self._fail(group, error)

    def _fail(self, group: SequenceGroup, error: Exception) -> None:
        self._events.append((group, [*group.take_events(), Failure(error)]))
        group.failure = error if isinstance(error, APIError) else internal_error()
        self._finish(group, str(group.failure.status))

    def _finish(self, group: SequenceGroup, reason: str) -> None:
        group.is_finished, group.outcome = True, reason
        group.finished_at = time.monotonic()
        self._store_prefixes(group)
        group.release()
        self._free(group)
        self._metrics.record(
            RequestStats(
                reason=reason,
                n_prompt_tokens=len(group.request.prompt),
                n_cached_tokens=group.n_cached_tokens,
                n_generated=group.n_generated,
                queued_at=group.queued_at,
                started_at=group.started_at,
                first_token_at=group.first_token_at,
                finished_at=group.finished_at,
            )
        )
        if group in self.running:  # last: once nothing runs, everything above is visible
            self.running.remove(group)

    def _store_prefixes(self, group: SequenceGroup) -> None:
        try:
            group.store_prefixes(self.prefixes)
        except Exception:  # an uncached prefix is prefilled again
            logger.exception("prefix not cached")

    def _flush(self) -> None:
        events = [(group, found) for group, found in self._events if not group.is_cancelled]
        self._events = []
        if events:
            self._delivered_at = time.monotonic()
            self._deliver(events)


def _tokens_to_reserve(group: SequenceGroup) -> int:
    """Return the positions of each choice that a request needs for its next step, in blocks."""
    n_blocks = group.n_positions // GROWTH + 1
    return min(n_blocks * GROWTH, group.request.n_tokens)


def _number(group: SequenceGroup) -> int:
    return group.number


def _no_time() -> float:
    return 0.0
