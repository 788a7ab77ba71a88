"""Server-sent events, and cancellation when the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Send

from yocobit.serving.errors import APIError, internal_error

PING_S = 15.0  # since the last event
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx buffers events otherwise
]
SendBytes = Callable[[bytes], Awaitable[None]]
T = TypeVar("T")


async def write_events(receive: Receive, send: Send, batches: AsyncIterator[list[Any]]) -> None:
    """Send an event per object, a batch at a time, and [DONE] at the end; pings while idle.

    An error after the start is sent as an event; one that is not an APIError is also raised at the
    end, to be logged. ClientDisconnect if the client disconnects.
    """
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    loop = asyncio.get_running_loop()
    sent_at = loop.time()

    async def send_bytes(data: bytes) -> None:
        nonlocal sent_at
        sent_at = loop.time()
        await send({"type": "http.response.body", "body": data, "more_body": True})

    async def ping() -> None:
        """Send comments, so that no proxy closes an idle connection."""
        while True:
            await asyncio.sleep(sent_at + PING_S - loop.time())
            if loop.time() >= sent_at + PING_S:
                await send_bytes(b": ping\n\n")

    pings = asyncio.create_task(ping())
    try:
        failure = await while_connected(receive, _write_batches(send_bytes, batches))
    finally:
        pings.cancel()
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
    if failure is not None:
        raise failure


async def while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """Return the result of `work`; cancel it and raise ClientDisconnect on a disconnect."""
    task = asyncio.ensure_future(work)
    disconnect = asyncio.create_task(_wait_for_disconnect(receive))
    try:
        await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, disconnect):
            each.cancel()
        await asyncio.gather(task, disconnect, return_exceptions=True)


async def _write_batches(
    send_bytes: SendBytes, batches: AsyncIterator[list[Any]]
) -> Exception | None:
    """Send batches of events; return the error to log, if any."""
    try:
        async for batch in batches:
            await send_bytes(b"".join(map(_event, batch)))
    except APIError as error:
        await send_bytes(_event(error.to_dict()))
    except Exception as error:
        await send_bytes(_event(internal_error().to_dict()))
        return error
    return None


def _event(value: Any) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
