"""The runtime: scheduler, prefix cache and the event streams of the requests in flight.

Requests go in, events come out. A runtime is constructed in the server's event loop and does not
depend on HTTP or on request bodies.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from yocobit.config import ConfigError
from yocobit.costs import summarize
from yocobit.engine import Engine
from yocobit.serving.errors import timed_out
from yocobit.serving.runtime.metrics import Metrics, SchedulerStats
from yocobit.serving.runtime.prefix_cache import PrefixCache
from yocobit.serving.runtime.prefix_store import PrefixStore
from yocobit.serving.runtime.preparation import WorkerPool
from yocobit.serving.runtime.request import Event, Failure, Finish, Request
from yocobit.serving.runtime.scheduler import Scheduler
from yocobit.serving.runtime.sequence import SequenceGroup
from yocobit.serving.settings import MB, ServerSettings

_STOP_S = 0.3
_MAX_THREADS = 4  # small requests that are tokenised at a time

T = TypeVar("T")


class EventStream:
    """The events of one or more requests, as they happen."""

    def __init__(self) -> None:
        self.groups: list[SequenceGroup] = []
        self._events: asyncio.Queue[list[tuple[int, Event]]] = asyncio.Queue()
        self._n_open = 0  # choices that are not complete

    def add(self, group: SequenceGroup) -> None:
        """Add a request; its index is the number of those before it."""
        self.groups.append(group)
        self._n_open += len(group.request.sampling)

    def put(self, index: int, events: Sequence[Event]) -> None:
        """Append events of the request with that index."""
        self._events.put_nowait([(index, event) for event in events])

    async def events(self) -> AsyncIterator[list[tuple[int, Event]]]:
        """Yield batches of events, each with the index of its request, up to the last finish.

        Raises the error of a failure.
        """
        while self._n_open > 0:
            events = await self._events.get()
            while not self._events.empty():
                events += self._events.get_nowait()
            for i, (_, event) in enumerate(events):
                if isinstance(event, Failure):
                    if i > 0:
                        yield events[:i]
                    raise event.error
                self._n_open -= isinstance(event, Finish)
            yield events


class Runtime:
    """Runs requests on one engine."""

    def __init__(
        self,
        engine: Engine,
        settings: ServerSettings,
        metrics: Metrics,
        identity: str,
        workers: WorkerPool,
    ) -> None:
        """Start the scheduler. ConfigError if a sequence of the whole context does not fit.

        `identity` identifies model, cache type and numerics: cached prefixes depend on them.
        `workers` are started; they are stopped with the runtime.
        """
        self.engine = engine
        self._workers = workers
        self._timeout_s = settings.timeout_s
        self._streams: dict[SequenceGroup, tuple[EventStream, int]] = {}  # and the index in it
        self._n_preparing = 0
        self._threads = asyncio.Semaphore(_MAX_THREADS)
        self._loop = asyncio.get_running_loop()
        self._store: PrefixStore | None = None
        prefixes = None
        if settings.prefix_mb > 0:
            if settings.prefix_dir is not None:
                self._store = PrefixStore(settings.prefix_dir, settings.prefix_dir_mb * MB)
            per_token = summarize(engine.model).cache_bytes_per_token[settings.cache]
            prefixes = PrefixCache(
                settings.prefix_mb * MB, identity, per_token, self._store, _salts(settings)
            )
        self.scheduler = Scheduler(
            engine,
            self._deliver,
            cache=settings.cache,
            cache_bytes=settings.cache_bytes,
            max_sequences=settings.max_sequences,
            max_waiting=settings.max_waiting,
            prefixes=prefixes,
            metrics=metrics,
        )
        try:
            _check_context(settings, self.scheduler.session_bytes(settings.context))
        except ConfigError:
            self.stop()
            raise
        metrics.watch(self._stats)

    @property
    def n_open(self) -> int:
        """Requests that are being prepared or whose response is not yet written."""
        return len(self._streams) + self._n_preparing

    def check_capacity(self) -> None:
        """Raise the errors of Scheduler.check_capacity for one more request."""
        self.scheduler.check_capacity(1 + self._n_preparing)

    async def prepare(self, arrived_at: float, work: Awaitable[T]) -> T:
        """Await the preparation of a request that arrived then: `in_thread` or `in_worker`.

        Raises the errors of Scheduler.check_capacity, and 504 at the time limit of requests.
        """
        try:
            self.check_capacity()
        except BaseException:
            if asyncio.iscoroutine(work):
                work.close()
            raise
        self._n_preparing += 1
        task = asyncio.ensure_future(work)
        task.add_done_callback(_retrieve)
        try:
            left_s = arrived_at + self._timeout_s - time.monotonic()
            return await asyncio.wait_for(task, left_s)
        except (TimeoutError, asyncio.TimeoutError):
            raise timed_out(self._timeout_s, is_started=False) from None
        finally:
            self._n_preparing -= 1

    async def in_thread(self, build: Callable[..., T], *arguments: object) -> T:
        """Return the result of work whose cost is small, a few at a time."""
        async with self._threads:
            return await asyncio.to_thread(build, *arguments)

    async def in_worker(
        self, build: Callable[..., T], *arguments: object, client: str, is_heavy: bool
    ) -> T:
        """Return the result of work in a process with the served model as its first argument."""
        found: T = await self._workers.run(build, *arguments, client=client, is_heavy=is_heavy)
        return found

    @contextlib.asynccontextmanager
    async def generate(
        self, requests: Sequence[Request], arrived_at: float
    ) -> AsyncIterator[EventStream]:
        """Run requests; those unfinished at the end of the block are cancelled."""
        stream = EventStream()
        try:
            for group in self.scheduler.submit(requests, arrived_at):
                self._streams[group] = stream, len(stream.groups)
                stream.add(group)
            yield stream
        finally:
            for group in stream.groups:
                del self._streams[group]
                self.scheduler.cancel(group)

    def _stats(self) -> SchedulerStats:
        return dataclasses.replace(self.scheduler.stats(), n_preparing=self._n_preparing)

    def begin_stop(self) -> None:
        """Have the requests in flight fail, without waiting for it."""
        self._workers.begin_stop()
        self.scheduler.begin_stop()

    def stop(self) -> None:
        """Stop the workers and the scheduler; unfinished requests fail.

        Neither a long step nor a slow disk delays it.
        """
        self._workers.stop()
        self.scheduler.stop(_STOP_S)
        if self._store is not None:
            self._store.close(_STOP_S)

    def _deliver(self, events: Sequence[tuple[SequenceGroup, list[Event]]]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: no client is left
            self._loop.call_soon_threadsafe(self._dispatch, events)

    def _dispatch(self, events: Sequence[tuple[SequenceGroup, list[Event]]]) -> None:
        for group, found in events:
            if group in self._streams:
                stream, index = self._streams[group]
                stream.put(index, found)


def _salts(settings: ServerSettings) -> Mapping[str, bytes]:
    """Return what separates the cached prefixes of several API keys, by client."""
    keys = settings.api_keys if len(settings.api_keys) > 1 else ()
    return {key_client(i): hashlib.sha256(key.encode()).digest() for i, key in enumerate(keys)}


def key_client(index: int) -> str:
    """Return the client of the API key with that index."""
    return f"key {index}"


def _retrieve(task: asyncio.Future[Any]) -> None:
    """Have the error of a request whose client has disconnected count as retrieved.

    Up to Python 3.11, a task that fails while `wait_for` cancels it is otherwise logged.
    """
    if not task.cancelled():
        task.exception()


def _check_context(settings: ServerSettings, size: int) -> None:
    """ConfigError unless one sequence of the whole context, of `size` bytes, fits."""
    if size > settings.cache_bytes:
        raise ConfigError(
            f"a sequence of --context {settings.context} tokens needs {size:,} bytes of caches, "
            f"but --cache-mb {settings.cache_mb} is {settings.cache_bytes:,}; give at least "
            f"--cache-mb {-(-size // MB)}, or a smaller --context"
        )
