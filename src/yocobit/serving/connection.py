"""Connections: how many there may be, and how long one may take to send a request."""

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
from yocobit.serving.exchange import write_json
from yocobit.serving.metrics import Metrics

REQUEST_S = 20.0  # for a request's head, from when the connection is made or spoken on again


class Connection(HttpToolsProtocol):
    """uvicorn's, but it ends if no request comes, and refuses in OpenAI's shape.

    uvicorn itself waits for ever for the rest of a head, however slowly it comes.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._most, self.limit_concurrency = self.limit_concurrency, None  # not uvicorn's answer
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._most is not None and len(self.connections) > self._most:
            metrics = self.config.app.state.server.metrics  # type: ignore[union-attr]
            self.app = functools.partial(_refuse, metrics)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_watching()

    def _watch(self) -> None:
        """End the connection in time unless a request is at work."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_watching()
        elif self._end is None:
            self._end = self.loop.call_later(REQUEST_S, self.transport.close)

    def _stop_watching(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, and end the connection."""
        self.config.app.state.server.metrics.refused(400)  # type: ignore[union-attr]
        body = msgspec.json.encode(APIError(400, msg).to_dict())
        headers = b"content-type: application/json\r\nconnection: close\r\n"
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\n%bcontent-length: %d\r\n\r\n%b"
            % (headers, len(body), body)
        )
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: a request for another protocol is answered as if it did not ask."""


async def _refuse(metrics: Metrics, scope: Scope, receive: Receive, send: Send) -> None:
    metrics.refused(503)
    error = APIError(503, "there are too many connections; try again", code="too_many_connections")
    await write_json(send, 503, error.to_dict(), {"retry-after": "1", "connection": "close"})
