"""Connections: limits on their number, on request headers, and on the time clients take."""

from __future__ import annotations

import asyncio
import functools
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from yocobit.serving import limits
from yocobit.serving.errors import APIError
from yocobit.serving.http.json_body import write_body
from yocobit.serving.runtime.metrics import Metrics

REQUEST_TIMEOUT_S = 20.0  # for request headers, from the connection's start or its last response
READ_TIMEOUT_S = 60.0  # for a client to read what fills the buffers
# What a rejected client may still send: the system would drop the error with an earlier close.
_LINGER_S, _LINGER_BYTES = 1.0, 1 << 20


class Connection(HttpToolsProtocol):
    """uvicorn's connection with limits, and errors in OpenAI's shape.

    uvicorn itself waits indefinitely for the rest of the headers, of any size, and for readers.
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
        self._read_timeout: asyncio.TimerHandle | None = None
        self._n_unparsed = 0  # bytes since the last part of a body or the last complete request
        self._head_bytes = 0
        self._error: APIError | None = None  # why the parser was stopped
        self._is_rejected = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        limit = self._max_connections
        if limit is not None and len(self.connections) > limit:
            metrics = self.config.app.state.server.metrics  # type: ignore[union-attr]
            self.app = functools.partial(_reject, metrics)
        self._watch()

    def data_received(self, data: bytes) -> None:
        self._n_unparsed += len(data)
        if self._is_rejected:
            if self._n_unparsed > _LINGER_BYTES:
                self.transport.abort()
            return
        super().data_received(data)
        # The parser reports a header once it is complete: an endless one never is.
        if self._n_unparsed > limits.HEAD_BYTES and not self._is_rejected:
            self._error = _head_too_large()
            self.send_400_response("")
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_watching()
        self.resume_writing()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._read_timeout = self.loop.call_later(READ_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._read_timeout is not None:
            self._read_timeout.cancel()
            self._read_timeout = None

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > limits.REQUEST_LINE_BYTES:
            self._stop_parsing(
                APIError(
                    431, f"a request line may have {limits.REQUEST_LINE_BYTES:,} bytes; shorten it"
                )
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._head_bytes += len(name) + len(value)
        if len(self.headers) > limits.HEADERS or self._head_bytes > limits.HEAD_BYTES:
            self._stop_parsing(_head_too_large())

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= limits.PIPELINED:
            self._stop_parsing(
                APIError(
                    400,
                    f"at most {limits.PIPELINED} requests may be pipelined; wait for the responses",
                )
            )
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._n_unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._n_unparsed = 0
        super().on_message_complete()

    def _stop_parsing(self, error: APIError) -> None:
        self._error = error
        raise error  # the parser ends with an error of its own

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
        error = self._error or APIError(400, msg)
        self.config.app.state.server.metrics.reject(error.status)  # type: ignore[union-attr]
        if self.cycle is None or self.cycle.response_complete:  # not within another response
            body = msgspec.json.encode(error.to_dict())
            headers = b"content-type: application/json\r\nconnection: close\r\n"
            status = f"{error.status} {HTTPStatus(error.status).phrase}".encode()
            self.transport.write(
                b"HTTP/1.1 %b\r\n%bcontent-length: %d\r\n\r\n%b"
                % (status, headers, len(body), body)
            )
            self.transport.write_eof()
        self._is_rejected, self._n_unparsed = True, 0
        self.loop.call_later(_LINGER_S, self.transport.close)

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: an Upgrade header is ignored."""


def _head_too_large() -> APIError:
    return APIError(
        431,
        f"a request may have {limits.HEADERS} headers of {limits.HEAD_BYTES:,} bytes in total; "
        "send fewer",
    )


async def _reject(metrics: Metrics, scope: Scope, receive: Receive, send: Send) -> None:
    metrics.reject(503)
    error = APIError(503, "there are too many connections; try again", code="too_many_connections")
    headers = {"retry-after": "1", "connection": "close"}
    await write_body(send, 503, error.to_dict(), headers=headers)
