"""The scheduler: continuous batching with chunked prefill.

One thread owns the engine. Each step decodes one token per running sequence and prefills a chunk of
the waiting prompts, in one pass over the weights. Batch composition only decides when a token is
computed, never its value.

A request reserves cache memory as it grows. If the next block does not fit, the youngest running
request is preempted: its sessions are freed, and it waits to be prefilled again, from the prefix
cache where possible. The oldest request is never preempted, because every request fits alone.

Letters: V vocabulary
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yocobit.costs import session_bytes
from yocobit.engine import Engine, FileChangedError
from yocobit.engine.sampling import sample_batch
from yocobit.engine.session import CacheType, Logits
from yocobit.mixers import FEED_FORWARDS
from yocobit.serving.errors import (
    APIError,
    internal_error,
    out_of_memory,
    queue_full,
    shutting_down,
    timed_out,
)
from yocobit.serving.runtime.cache_memory import CacheMemory, is_full
from yocobit.serving.runtime.metrics import Metrics, RequestStats, SchedulerStats
from yocobit.serving.runtime.prefix_cache import PrefixCache
from yocobit.serving.runtime.request import Event, Failure, Request
from yocobit.serving.runtime.request_queue import RequestQueue
from yocobit.serving.runtime.sequence import Sequence as DecodingSequence
from yocobit.serving.runtime.sequence import SequenceGroup
from yocobit.serving.runtime.slow_sequences import Decoding, SlowSequences

# Prompt tokens per step while other sequences decode, which bounds their inter-token time; without
# them, a step has as many as one forward pass.
PREFILL_TOKENS_WHILE_DECODING = 32
# Events wait this long for more: waking the event loop takes a CPU from the engine for longer than
# a small model needs for a token.
DELIVERY_INTERVAL_S = 0.004
# A step that takes longer is stuck: a forward pass takes seconds on the slowest CPUs.
STUCK_S = 120.0

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
        self.max_waiting = max_waiting
        self.prefixes = prefixes
        self.memory = CacheMemory(engine.config, cache, cache_bytes)
        self.running: list[SequenceGroup] = []
        self._n_submitted = 0
        self._deliver = deliver
        self._metrics = metrics
        self._max_sequences = max_sequences
        self._max_batch_tokens = FEED_FORWARDS[engine.config.ffn].max_batch_tokens
        self._waiting = RequestQueue()
        self._logits = np.empty((max_sequences, engine.config.vocab_size), dtype=np.float32)
        self._events: list[tuple[SequenceGroup, list[Event]]] = []
        self._delivered_at = 0.0
        self._changed = threading.Condition()
        self._stopping = False
        self.problem: str | None = None  # why no request can be run any more
        self._step_started_at: float | None = None  # None while there is no work
        self._slow = SlowSequences()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

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
            reserved_bytes=self.memory.reserved_bytes,
            cache_bytes=self.memory.n_bytes,
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
                self._waiting.append(group)
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
            unfinished = [*self.running, *self._waiting]
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

    def _take_expired(self) -> list[SequenceGroup]:
        """Return requests that were cancelled or timed out, and remove them from the queue."""
        now = time.monotonic()
        expired = [
            group
            for group in [*self.running, *self._waiting]
            if group.is_cancelled or now > group.deadline
        ]
        self._waiting.remove(expired)
        return expired

    def _grow(self) -> None:
        """Reserve the next block of requests that reached the end of theirs, the oldest first.

        If it does not fit, the youngest running requests are preempted.
        """
        for group in sorted(filter(is_full, self.running), key=_number):
            while group in self.running and not self.memory.has_room_to_grow(group):
                self._preempt(max(self.running, key=_number))
            if group in self.running:
                self.memory.reserve(group)

    def _preempt(self, group: SequenceGroup) -> None:
        """Free the sessions of a running request, and put it at the front of the queue."""
        self._store_prefixes(group)
        group.preempt()
        self.memory.free(group)
        self._metrics.preemptions.inc()
        with self._changed:
            self.running.remove(group)
            self._waiting.put_first(group)

    def _admit(self) -> list[SequenceGroup]:
        """Start queued requests whose caches fit, round-robin over the clients."""
        admitted: list[SequenceGroup] = []
        while (group := self._waiting.first) is not None and self._fits(group):
            self._waiting.remove_first()
            self.memory.reserve(group)
            self.running.append(group)
            admitted.append(group)
        return admitted

    def _fits(self, group: SequenceGroup) -> bool:
        """Whether a request fits the free sequences and the cache memory."""
        n_sequences = self.n_sequences + len(group.request.sampling)
        return n_sequences <= self._max_sequences and self.memory.fits(group, self.running)

    def _step(self) -> None:
        """Decode one token per running sequence and prefill a chunk of the prompts."""
        decoding = [
            (group, sequence)
            for group in self.running
            if group.is_decoding
            for sequence in group.sequences
            if not sequence.is_finished
        ]
        chunks = self._next_chunks(
            PREFILL_TOKENS_WHILE_DECODING if decoding else self._max_batch_tokens
        )
        decoding = self._slow.choose(decoding, is_shared=bool(chunks))
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

    def _sample(self, decoding: Decoding, logits: Logits) -> None:
        """Sample the next token of each sequence from its row of logits, and append it."""
        masked: list[tuple[SequenceGroup, DecodingSequence, Logits, Logits]] = []

        def mask(group: SequenceGroup, sequence: DecodingSequence, row: Logits) -> None:
            masked.append((group, sequence, row, sequence.state.mask(row)))

        clock = self._slow.clock
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
                self._slow.record(sequence)
        total_s = masked_s - started_s + time.thread_time() - sampled_s
        self._slow.end_step(total_s, self.running)

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
        self.memory.free(group)
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


def _number(group: SequenceGroup) -> int:
    return group.number
