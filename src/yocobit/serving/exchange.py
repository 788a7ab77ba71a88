"""HTTP bodies: requests read with limits, answers written whole or as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from yocobit.serving.errors import APIError

PING_S = 15.0  # of silence
BODY_S = 60.0  # for a client to send its body
_JSON = [(b"content-type", b"application/json")]
_EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]
Say = Callable[[bytes], Awaitable[None]]
T = TypeVar("T")

SERVER_FAILED = APIError(500, "the server failed; its log says more")


class ClientGoneError(Exception):
    """The client closed the connection; there is nobody to answer."""


async def read_json(scope: Scope, receive: Receive, kind: type[T], limit: int) -> T:
    """Read a body of at most `limit` bytes; APIError if it is not JSON of that kind."""
    headers = dict(scope["headers"])
    content = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if content != b"application/json":
        # Also keeps out other sites' pages: a browser asks us before it sends them this type.
        raise APIError(
            415, f"Content-Type must be application/json but is {content.decode('latin-1')!r}"
        )
    too_large = APIError(413, f"the body must have at most {limit:,} bytes")
    with contextlib.suppress(ValueError):
        if int(headers.get(b"content-length", b"0")) > limit:
            raise too_large
    try:
        body = await asyncio.wait_for(_read(receive, limit, too_large), BODY_S)
    except (TimeoutError, asyncio.TimeoutError):
        raise APIError(408, f"the body did not arrive within {BODY_S:g} s") from None
    return parse(body, kind)


def parse(body: bytes, kind: type[T]) -> T:
    """Return JSON as that kind; APIError 400 that names the field if it is not."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        param = where.rstrip("`").lstrip(".") or None
        raise APIError(400, f"{param}: {what}" if param else what, param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise APIError(400, f"the body is not JSON: {error}") from None


async def write_json(
    send: Send, status: int, value: Any, headers: Mapping[str, str] | None = None
) -> None:
    """Answer with JSON."""
    more = [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()]
    body = msgspec.json.encode(value)
    more.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": _JSON + more})
    await send({"type": "http.response.body", "body": body})


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return JSON as an answer for Starlette to send."""
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


async def write_error(send: Send, error: APIError) -> None:
    """Answer with an error in OpenAI's shape."""
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    if error.status == 401:
        headers["www-authenticate"] = 'Basic realm="yocobit: any name, the API key as password"'
    if error.status == 405:
        headers["allow"] = "POST"  # of the endpoints that take a body; Starlette knows the others
    await write_json(send, error.status, error.to_dict(), headers)


async def write_events(receive: Receive, send: Send, chunks: AsyncIterator[list[Any]]) -> None:
    """Answer with an event for each chunk, [DONE] at the end, and pings while nothing comes.

    Chunks that come together are sent together. A failure after the begin is an event, too; if it
    is no APIError, it is raised at the end, for the log. ClientGoneError if the client goes away.
    """
    await send({"type": "http.response.start", "status": 200, "headers": _EVENTS})
    loop = asyncio.get_running_loop()
    said_at = loop.time()

    async def say(data: bytes) -> None:
        nonlocal said_at
        said_at = loop.time()
        await send({"type": "http.response.body", "body": data, "more_body": True})

    async def ping() -> None:
        """Say something now and then, so that nobody on the way takes silence for an end."""
        while True:
            await asyncio.sleep(said_at + PING_S - loop.time())
            if loop.time() >= said_at + PING_S:
                await say(b": ping\n\n")

    pings = asyncio.create_task(ping())
    try:
        failure = await while_connected(receive, _write_chunks(say, chunks))
    finally:
        pings.cancel()
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
    if failure is not None:
        raise failure


async def while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """Return what work returns; it is cancelled, with ClientGoneError, if the client goes away."""
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _write_chunks(say: Say, chunks: AsyncIterator[list[Any]]) -> Exception | None:
    """Write chunks as events; return the failure that is for the log, if any."""
    try:
        async for together in chunks:
            await say(b"".join(map(_event, together)))
    except APIError as error:
        await say(_event(error.to_dict()))
    except Exception as error:
        await say(_event(SERVER_FAILED.to_dict()))
        return error
    return None


def _event(value: Any) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read(receive: Receive, limit: int, too_large: APIError) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += message.get("body", b"")
        if len(body) > limit:
            raise too_large
        if not message.get("more_body"):
            return bytes(body)
