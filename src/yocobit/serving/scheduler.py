"""The scheduler: many texts through one engine, a step at a time.

One thread owns the engine. A step takes in one token of every text that is being written, and a
part of the prompts that are being read; each text gets what it would get alone, so who else is
there only decides when it gets it.

Letters: V vocabulary
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from yocobit.engine import Engine
from yocobit.engine.session import CacheType
from yocobit.serving.errors import (
    APIError,
    DeadlineError,
    NoMemoryError,
    ServerBusyError,
    ServerStoppedError,
)
from yocobit.serving.generation import Event, Failure, Request
from yocobit.serving.job import Job
from yocobit.serving.metrics import Metrics
from yocobit.serving.prefix_cache import PrefixCache

# Rows of prompts that go along with a step: few beside texts that wait for their next token.
PROMPT_ROWS, PROMPT_ROWS_BESIDE = 128, 32

Deliver = Callable[[Sequence[tuple[Job, list[Event]]]], None]

logger = logging.getLogger(__name__)


class Scheduler:
    """Runs requests; made and used from any thread."""

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
        """Begin to work. `deliver` is called in the scheduler's thread with what a step gave.

        `cache_bytes` is for the caches of at most `max_sequences` texts at a time; at most
        `max_waiting` requests wait for a place.
        """
        self.engine = engine
        self.cache: CacheType = cache
        self.cache_bytes = cache_bytes
        self.max_waiting = max_waiting
        self.prefixes = prefixes
        self.reserved_bytes = 0
        self.running: list[Job] = []
        probe = engine.session(1, cache).memory()
        self._bytes_per_token = probe.shared_kv_per_token + probe.full_per_token
        self._state_bytes = probe.window + probe.retention
        self._deliver = deliver
        self._metrics = metrics
        self._max_sequences = max_sequences
        self._waiting: dict[str, deque[Job]] = {}  # by client; the first is the next one's turn
        self._logits = np.empty((max_sequences, engine.config.vocab_size), dtype=np.float32)
        self._events: list[tuple[Job, list[Event]]] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    @property
    def n_waiting(self) -> int:
        return sum(len(jobs) for jobs in list(self._waiting.values()))

    @property
    def n_sequences(self) -> int:
        """Texts that are being read or written."""
        return sum(len(job.request.sampling) for job in list(self.running))

    def bytes_of(self, request: Request) -> int:
        """Return the bytes that the caches of a request need."""
        n_positions = -(-request.n_tokens // 32) * 32  # whole tiles
        return len(request.sampling) * (n_positions * self._bytes_per_token + self._state_bytes)

    def submit(self, request: Request) -> Job:
        """Queue a request. ServerBusyError if the queue is full, ServerStoppedError at the end."""
        job = Job(request, self.engine)
        with self._changed:
            if self._stopping:
                raise ServerStoppedError
            is_next = self.n_waiting == 0 and self._fits(request)
            if self.n_waiting >= self.max_waiting and not is_next:
                raise ServerBusyError(self.max_waiting)
            self._waiting.setdefault(request.client, deque()).append(job)
            self._changed.notify()
        return job

    def cancel(self, job: Job) -> None:
        """Forget a request before the next step, unless it is over."""
        with self._changed:
            job.is_cancelled = not job.is_over
            self._changed.notify()

    def stop(self) -> None:
        """End after this step; what is not complete fails with ServerStoppedError."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self.running or self.n_waiting or self._stopping):
                    self._changed.wait()
                if self._stopping:
                    break
                self._drop_dead()
                admitted = self._admit()
            self._begin(admitted)
            try:
                self._step()
            except Exception as error:  # ours; whoever is left must hear of it
                logger.exception("step failed")
                for job in list(self.running):
                    self._fail(job, error)
            self._flush()
        for job in [*self.running, *(job for jobs in self._waiting.values() for job in jobs)]:
            self._fail(job, ServerStoppedError())
        self._waiting.clear()
        self._flush()

    def _drop_dead(self) -> None:
        """Let go of jobs that were cancelled or are too late."""
        now = time.monotonic()
        for job in [*self.running, *(job for jobs in self._waiting.values() for job in jobs)]:
            if job.is_cancelled:
                self._end(job, "cancelled")
            elif now > job.deadline:
                self._fail(job, DeadlineError(job.request.timeout_s))
        for client, jobs in list(self._waiting.items()):
            alive = deque(job for job in jobs if not job.is_over)
            if alive:
                self._waiting[client] = alive
            else:
                del self._waiting[client]

    def _admit(self) -> list[Job]:
        """Take jobs whose caches fit, one client after the other."""
        admitted: list[Job] = []
        while self._waiting:
            client, jobs = next(iter(self._waiting.items()))
            job = jobs[0]
            if not self._fits(job.request):
                break
            jobs.popleft()
            del self._waiting[client]  # to the end of the row
            if jobs:
                self._waiting[client] = jobs
            job.reserved_bytes = self.bytes_of(job.request)
            self.reserved_bytes += job.reserved_bytes
            self.running.append(job)
            admitted.append(job)
        return admitted

    def _fits(self, request: Request) -> bool:
        """Whether there are a place and memory for a request now."""
        n_sequences = self.n_sequences + len(request.sampling)
        size = self.reserved_bytes + self.bytes_of(request)
        return n_sequences <= self._max_sequences and size <= self.cache_bytes

    def _begin(self, jobs: list[Job]) -> None:
        for job in jobs:
            try:
                job.begin(self.cache, self.prefixes)
            except MemoryError:
                self._fail(job, NoMemoryError())
            except Exception as error:  # ours; the others go on
                logger.exception("request could not begin")
                self._fail(job, error)

    def _step(self) -> None:
        """Take in the next token of each text, and some of each prompt."""
        writing = [s for job in self.running for s in job.sequences if not s.is_over]
        rows = PROMPT_ROWS_BESIDE if writing else PROMPT_ROWS
        parts: list[tuple[Job, NDArray[np.int32]]] = []
        for job in [job for job in self.running if not job.is_writing]:
            if rows <= 0:
                break
            if job.scores_prompt:
                job.score(rows)
                rows = 0
            else:
                part = job.next_part(rows)
                rows -= len(part)
                parts.append((job, part))
            self.running.remove(job)  # to the end of the row
            self.running.append(job)
        if writing or parts:
            logits = self._logits[: len(writing)]
            self.engine.step(
                [sequence.session for sequence in writing],
                [sequence.next_token for sequence in writing],
                logits,
                [(job.session, part) for job, part in parts],
            )
            for sequence, row in zip(writing, logits, strict=True):
                sequence.draw(row)
        for job, _ in parts:
            job.has_read(self.prefixes)
        for job in list(self.running):
            if events := job.take_events():
                self._events.append((job, events))
            if job.is_writing and all(sequence.is_over for sequence in job.sequences):
                self._end(job, job.finish_reason)

    def _fail(self, job: Job, error: Exception) -> None:
        self._events.append((job, [*job.take_events(), Failure(error)]))
        self._end(job, str(error.status if isinstance(error, APIError) else 500))

    def _end(self, job: Job, reason: str) -> None:
        job.is_over = True
        job.ended_at = time.monotonic()
        if job in self.running:
            self.running.remove(job)
            job.keep(self.prefixes)
        job.sequences.clear()
        self.reserved_bytes -= job.reserved_bytes
        job.reserved_bytes = 0
        self._metrics.ended(job, reason)

    def _flush(self) -> None:
        events = [(job, found) for job, found in self._events if not job.is_cancelled]
        self._events = []
        if events:
            self._deliver(events)
