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
from typing import Any

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
# What a token waits at most for the next ones: each time that the event loop is woken, it takes a
# CPU from the engine for longer than a small model needs for a token.
DELIVER_S = 0.004
# Positions; each so many more add to an index at most what the second so many do.
_INDEX_STEP = 256

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
        probe, longer = (engine.session(n * _INDEX_STEP, cache).memory() for n in (1, 2))
        self._bytes_per_token = probe.per_token
        self._state_bytes = probe.window + probe.retention
        self._index_bytes = probe.index  # of up to _INDEX_STEP positions
        self._index_bytes_per_step = longer.index - probe.index
        self._deliver = deliver
        self._metrics = metrics
        self._max_sequences = max_sequences
        self._waiting: dict[str, deque[Job]] = {}  # by client; the first is the next one's turn
        self._logits = np.empty((max_sequences, engine.config.vocab_size), dtype=np.float32)
        self._events: list[tuple[Job, list[Event]]] = []
        self._delivered_at = 0.0
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
        return len(request.sampling) * self.bytes_of_text(request.n_tokens)

    def bytes_of_text(self, n_tokens: int) -> int:
        """Return the bytes that the caches of one text need, with an index some more."""
        n_positions = -(-n_tokens // 32) * 32  # whole tiles
        n_steps = -(-n_tokens // _INDEX_STEP)
        index = self._index_bytes + (n_steps - 1) * self._index_bytes_per_step
        return n_positions * self._bytes_per_token + self._state_bytes + index

    @property
    def is_alive(self) -> bool:
        """Whether requests are still worked on."""
        return self._thread.is_alive()

    def check_room(self, n_requests: int) -> None:
        """ServerBusyError if so many more requests cannot wait, ServerStoppedError at the end."""
        if self._stopping:
            raise ServerStoppedError
        n_free = max(0, self._max_sequences - self.n_sequences)
        if self.n_waiting + n_requests > self.max_waiting + n_free:
            raise ServerBusyError(self.n_waiting)

    def submit(self, requests: Sequence[Request]) -> list[Job]:
        """Queue requests, all or none; errors as of check_room."""
        jobs = [Job(request, self.engine) for request in requests]
        with self._changed:
            self.check_room(len(jobs))
            for job in jobs:
                self._waiting.setdefault(job.request.client, deque()).append(job)
            self._changed.notify()
        return jobs

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
        try:
            while self._work():
                pass
        except BaseException:  # ours; nobody may wait for what will never come
            logger.exception("the scheduler ends")
        with self._changed:
            self._stopping = True
            left = [*self.running, *self._all_waiting()]
            self._waiting.clear()
        for job in left:
            self._fail(job, ServerStoppedError())
        self._flush()

    def _work(self) -> bool:
        """Take a step if there is something to do; return whether to go on."""
        with self._changed:
            while not (self.running or self._waiting or self._stopping):
                self._changed.wait()
            if self._stopping:
                return False
            dead = self._take_dead()
            admitted = self._admit()
        for job in dead:
            if job.is_cancelled:
                self._end(job, "cancelled")
            else:
                self._fail(job, DeadlineError(job.request.timeout_s, job.begun_at > 0))
        for job in admitted:
            self._guard(job, job.begin, self.cache, self.prefixes)
        try:
            self._step()
        except Exception as error:  # ours; whoever is left must hear of it
            logger.exception("step failed")
            for job in list(self.running):
                self._fail(job, error)
        is_late = time.monotonic() - self._delivered_at >= DELIVER_S
        if is_late or any(job.is_over for job, _ in self._events):
            self._flush()
        return True

    def _all_waiting(self) -> list[Job]:
        return [job for jobs in self._waiting.values() for job in jobs]

    def _take_dead(self) -> list[Job]:
        """Return jobs that were cancelled or are too late; they wait no more."""
        now = time.monotonic()
        dead = [
            job
            for job in [*self.running, *self._all_waiting()]
            if job.is_cancelled or now > job.deadline
        ]
        for client, jobs in list(self._waiting.items()):
            self._waiting[client] = deque(job for job in jobs if job not in dead)
            if not self._waiting[client]:
                del self._waiting[client]
        return dead

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

    def _step(self) -> None:
        """Take in the next token of each text, and some of each prompt."""
        writing = [
            (job, sequence)
            for job in self.running
            if job.is_writing
            for sequence in job.sequences
            if not sequence.is_over
        ]
        rows = PROMPT_ROWS_BESIDE if writing else PROMPT_ROWS
        parts: list[tuple[Job, NDArray[np.int32]]] = []
        for job in [job for job in self.running if not job.is_writing]:
            if rows <= 0:
                break
            if job.has_to_fork:
                self._guard(job, job.fork)
            elif job.scores_prompt:
                self._guard(job, job.score, rows)
                rows = 0
            else:
                part = job.next_part(rows)
                rows -= len(part)
                parts.append((job, part))
            if job in self.running:  # to the end of the row
                self.running.remove(job)
                self.running.append(job)
        if writing or parts:
            logits = self._logits[: len(writing)]
            self.engine.step(
                [sequence.session for _, sequence in writing],
                [sequence.next_token for _, sequence in writing],
                logits,
                [(job.reader, part) for job, part in parts],
            )
            for (job, sequence), row in zip(writing, logits, strict=True):
                if not job.is_over:
                    self._guard(job, sequence.draw, row)
        for job, _ in parts:
            self._guard(job, job.has_read, self.prefixes)
        for job in list(self.running):
            if events := job.take_events():
                self._events.append((job, events))
            if job.is_writing and all(sequence.is_over for sequence in job.sequences):
                self._end(job, job.finish_reason)

    def _guard(self, job: Job, work: Callable[..., None], *arguments: Any) -> None:
        """Do a job's own work; what goes wrong with it is the job's alone."""
        try:
            work(*arguments)
        except MemoryError:
            self._fail(job, NoMemoryError())
        except Exception as error:
            logger.exception("request failed")
            self._fail(job, error)

    def _fail(self, job: Job, error: Exception) -> None:
        self._events.append((job, [*job.take_events(), Failure(error)]))
        self._end(job, str(error.status if isinstance(error, APIError) else 500))

    def _end(self, job: Job, reason: str) -> None:
        job.is_over = True
        job.ended_at = time.monotonic()
        try:
            job.keep(self.prefixes)
        except Exception:  # what is not kept is computed again
            logger.exception("prefix not kept")
        job.let_go()
        self.reserved_bytes -= job.reserved_bytes
        job.reserved_bytes = 0
        self._metrics.ended(job, reason)
        if job in self.running:  # last: who sees nothing running sees all of it done
            self.running.remove(job)

    def _flush(self) -> None:
        events = [(job, found) for job, found in self._events if not job.is_cancelled]
        self._events = []
        if events:
            self._delivered_at = time.monotonic()
            self._deliver(events)
