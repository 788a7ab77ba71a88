"""The server's state, and the input and output of handlers, which do no HTTP themselves."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

from yocobit.engine import Engine
from yocobit.errors import UserError
from yocobit.serving import limits
from yocobit.serving.api.protocol import decode
from yocobit.serving.api.response_store import ResponseStore
from yocobit.serving.api.served_model import ServedModel, text_model
from yocobit.serving.errors import APIError
from yocobit.serving.runtime.metrics import Metrics
from yocobit.serving.runtime.preparation import WorkerPool
from yocobit.serving.runtime.request import Request
from yocobit.serving.runtime.runtime import EventStream, Runtime
from yocobit.serving.runtime.sequence import SequenceGroup
from yocobit.serving.settings import ServerSettings

logger = logging.getLogger(__name__)


class ServerState:
    """The state of a server: loading, ready, failed or draining."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.model: ServedModel | None = None
        self.runtime: Runtime | None = None  # set last: the server is ready then
        self.problem: str | None = None  # why loading failed
        self.report: Callable[[str], None] = logger.error  # called with the problem
        self.is_draining = False
        self.responses = ResponseStore(limits.STORED_RESPONSES_BYTES)
        self._body_bytes = 0  # of all requests that are read or prepared

    @property
    def is_ready(self) -> bool:
        return self.runtime is not None

    def require_ready(self) -> tuple[ServedModel, Runtime]:
        """Return model and runtime; APIError 503 unless new requests are accepted."""
        if self.is_draining:
            raise APIError(503, "the server is shutting down", code="draining", retry_after=5)
        if self.problem is not None:
            raise APIError(503, "the model failed to load; see the server's log", code="failed")
        if self.model is None or self.runtime is None:
            raise APIError(503, "the model is loading", code="loading", retry_after=1)
        return self.model, self.runtime

    @contextlib.contextmanager
    def body_memory(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that reserves bytes for a body until the block ends.

        APIError 503 if the bodies of all requests take too much memory.
        """
        n_reserved = 0

        def reserve(n_bytes: int) -> None:
            nonlocal n_reserved
            if self._body_bytes + n_bytes > limits.LARGE_BODIES * self.settings.max_body_bytes:
                raise APIError(
                    503,
                    "the memory for request bodies is in use; try again",
                    code="too_many_large_bodies",
                    retry_after=1,
                )
            n_reserved += n_bytes
            self._body_bytes += n_bytes

        try:
            yield reserve
        finally:
            self._body_bytes -= n_reserved

    async def load(self) -> None:
        """Load the model and start the runtime; on failure, set and report `problem`."""
        # The model's directory may be relative; workers need no keys.
        settings = dataclasses.replace(self.settings, model=self.settings.model.resolve())
        workers = WorkerPool(
            functools.partial(text_model, settings.without_keys()),
            cpu_s=limits.PREPARATION_CPU_S,
            wall_s=limits.PREPARATION_S,
            memory_bytes=limits.PREPARATION_BYTES,
        )
        try:
            starting = asyncio.ensure_future(workers.start())
            engine = await asyncio.to_thread(
                Engine.load,
                settings.model,
                threads=settings.threads,
                kernels=settings.kernels,
                attention=settings.attention,
                exact=settings.exact,
                verify=settings.verify,
            )
            await asyncio.to_thread(engine.check_weights)
            self.model = await asyncio.to_thread(ServedModel, engine, settings)
            self.settings = settings = self.model.settings  # with the model's context
            await asyncio.to_thread(self.model.warm_up)
            await starting
            self.runtime = Runtime(engine, settings, self.metrics, self.model.identity, workers)
        except BaseException as error:
            starting.cancel()
            workers.stop()
            if isinstance(error, asyncio.CancelledError):
                raise
            if not isinstance(error, ValueError | OSError | MemoryError):  # a bug, not a setting
                logger.exception("the model failed to load")
            self.problem = str(error) or type(error).__name__
            self.report(self.problem)


def prepare(
    model: ServedModel, build: Callable[..., Any], kind: type, body: bytes, client: str
) -> Any:
    """Decode the body of a request and build what its handler runs; APIError if it is invalid."""
    decoded: Any = decode(body, kind)
    model.check_name(decoded.model)
    try:
        return build(model, decoded, client)
    except UserError as error:
        raise APIError(400, str(error)) from None
    except RecursionError:  # the decoder reaches deeper than what follows it
        raise APIError(400, "the request is nested too deep; flatten it") from None


@dataclasses.dataclass(frozen=True)
class Reply:
    """A response body: an object is sent as JSON, bytes unchanged."""

    value: Any
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Events:
    """A stream: batches of objects, framed by the endpoint's wire format."""

    batches: AsyncIterator[list[Any]]
    # Returns the last event of a stream that fails; None: the wire format's error.
    failed: Callable[[APIError], Any] = lambda error: None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Call:
    """One request to an endpoint."""

    state: ServerState
    prepared: Any  # the result of the endpoint's `prepare`; None for a GET
    client: str  # API key or address, for round-robin scheduling
    arrived_at: float  # of time.monotonic()
    path_params: Mapping[str, str]
    resources: contextlib.AsyncExitStack  # closed once the response has been sent
    query: Any = None  # of the endpoint's type
    is_anthropic: bool = False  # whether errors, and models, have Anthropic's shape
    is_counted: bool = False  # whether the scheduler counts the request's outcome
    groups: Sequence[SequenceGroup] = ()  # what the scheduler runs for it

    @property
    def model(self) -> ServedModel:
        return self.state.require_ready()[0]

    @property
    def runtime(self) -> Runtime:
        return self.state.require_ready()[1]

    async def generate(self, requests: Sequence[Request]) -> EventStream:
        """Run requests until the response has been sent."""
        running = self.runtime.generate(requests, self.arrived_at)
        stream = await self.resources.enter_async_context(running)
        self.is_counted, self.groups = True, stream.groups
        return stream


async def reply(call: Call) -> Reply:
    """Handle a request whose response was prepared, as JSON."""
    return Reply(call.prepared)
