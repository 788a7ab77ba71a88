"""Streams of events, and cancellation when the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Send

from yocobit.serving.api.call import Events
from yocobit.serving.api.wire import OPENAI, WireFormat
from yocobit.serving.errors import APIError, internal_error

PING_S = 15.0  # since the last event
SendBytes = Callable[[bytes], Awaitable[None]]
T = TypeVar("T")


async def write_events(
    receive: Receive, send: Send, events: Events, wire: WireFormat = OPENAI
) -> None:
    """Send an event per object, a batch at a time, and the format's end; pings while idle.

    An error after the start is sent as an event; one that is not an APIError is also raised at the
    end, to be logged. ClientDisconnect if the client disconnects.
    """
    fields = {
        "content-type": f"{wire.stream_type}; charset=utf-8",
        "cache-control": "no-cache",
        "x-accel-buffering": "no",  # nginx buffers events otherwise
        **events.headers,
    }
    raw = [(name.lower().encode(), field.encode()) for name, field in fields.items()]
    await send({"type": "http.response.start", "status": 200, "headers": raw})
    loop = asyncio.get_running_loop()
    sent_at = loop.time()

    async def send_bytes(data: bytes) -> None:
        nonlocal sent_at
        sent_at = loop.time()
        await send({"type": "http.response.body", "body": data, "more_body": True})

    async def ping() -> None:
        """Keep proxies from closing an idle connection."""
        while wire.ping:
            await asyncio.sleep(sent_at + PING_S - loop.time())
            if loop.time() >= sent_at + PING_S:
                await send_bytes(wire.ping)

    pings = asyncio.create_task(ping())
    try:
        failure = await while_connected(receive, _write_batches(send_bytes, events, wire))
    finally:
        pings.cancel()
    await send({"type": "http.response.body", "body": wire.end})
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
    send_bytes: SendBytes, events: Events, wire: WireFormat
) -> Exception | None:
    """Send batches of events; return the error to log, if any."""

    async def send_error(error: APIError) -> None:
        await send_bytes(wire.frame(events.failed(error) or wire.error(error)))

    try:
        async for batch in events.batches:
            await send_bytes(b"".join(map(wire.frame, batch)))
    except APIError as error:
        await send_error(error)
    except Exception as error:
        await send_error(internal_error())
        return error
    return None


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
