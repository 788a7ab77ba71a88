"""Connections: a limit on their number, and a timeout for request heads."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from yocobit.serving.errors import APIError
from yocobit.serving.http.json_body import write_body
from yocobit.serving.runtime.metrics import Metrics

REQUEST_TIMEOUT_S = 20.0  # for a request's head, from the connection's start or its last response


class Connection(HttpToolsProtocol):
    """uvicorn's connection with a timeout for request heads, and errors in OpenAI's shape.

    uvicorn itself waits indefinitely for the rest of a head.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # Connections over the limit are rejected below, with a JSON error, not by uvicorn.
        self._max_connections, self.limit_concurrency = self.limit_concurrency, None
        self._timeout: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        limit = self._max_connections
        if limit is not None and len(self.connections) > limit:
            metrics = self.config.app.state.server.metrics  # type: ignore[union-attr]
            self.app = functools.partial(_reject, metrics)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_watching()

    def _watch(self) -> None:
        """Start the timeout unless a request is in flight."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_watching()
        elif self._timeout is None:
            self._timeout = self.loop.call_later(REQUEST_TIMEOUT_S, self.transport.close)

    def _stop_watching(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None

    def send_400_response(self, msg: str) -> None:
        """Reject invalid HTTP, and close the connection."""
        self.config.app.state.server.metrics.reject(400)  # type: ignore[union-attr]
        body = msgspec.json.encode(APIError(400, msg).to_dict())
        headers = b"content-type: application/json\r\nconnection: close\r\n"
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\n%bcontent-length: %d\r\n\r\n%b"
            % (headers, len(body), body)
        )
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: an Upgrade header is ignored."""


async def _reject(metrics: Metrics, scope: Scope, receive: Receive, send: Send) -> None:
    metrics.reject(503)
    error = APIError(503, "there are too many connections; try again", code="too_many_connections")
    headers = {"retry-after": "1", "connection": "close"}
    await write_body(send, 503, error.to_dict(), headers=headers)
