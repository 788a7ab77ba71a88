"""The server's state, and the input and output of handlers, which do no HTTP themselves."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from yocobit.engine import Engine
from yocobit.serving.api.served_model import ServedModel
from yocobit.serving.errors import APIError
from yocobit.serving.runtime.metrics import Metrics
from yocobit.serving.runtime.runtime import Runtime
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

    async def load(self) -> None:
        """Load the model and start the runtime; on failure, set and report `problem`."""
        settings = self.settings
        try:
            engine = await asyncio.to_thread(
                Engine.load,
                settings.model,
                threads=settings.threads,
                kernels=settings.kernels,
                attention=settings.attention,
                verify=settings.verify,
            )
            self.model = await asyncio.to_thread(ServedModel, engine, settings)
            self.runtime = Runtime(engine, settings, self.metrics, self.model.identity)
        except Exception as error:
            if not isinstance(error, ValueError | OSError | MemoryError):  # a bug, not a setting
                logger.exception("the model failed to load")
            self.problem = str(error) or type(error).__name__
            self.report(self.problem)


@dataclasses.dataclass(frozen=True)
class Reply:
    """A response body: an object is sent as JSON, bytes unchanged."""

    value: Any
    status: int = 200
    content_type: str = "application/json"


@dataclasses.dataclass(frozen=True)
class Events:
    """A stream of server-sent events: batches of objects, ended by [DONE]."""

    batches: AsyncIterator[list[Any]]


@dataclasses.dataclass
class Call:
    """One request to an endpoint."""

    state: ServerState
    body: Any  # of the endpoint's body type; None for a GET
    client: str  # API key or address, for round-robin scheduling
    path_params: Mapping[str, str]
    resources: contextlib.AsyncExitStack  # closed once the response has been sent
    is_counted: bool = False  # whether the scheduler counts the request's outcome

    @property
    def model(self) -> ServedModel:
        return self.state.require_ready()[0]

    @property
    def runtime(self) -> Runtime:
        return self.state.require_ready()[1]
