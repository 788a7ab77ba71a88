"""JSON over HTTP: request bodies read with limits, responses, errors."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from yocobit.serving.api.wire import OPENAI, WireFormat
from yocobit.serving.errors import APIError

BODY_TIMEOUT_S = 60.0  # for a client to send its body


def check_content_type(scope: Scope, allows_any: bool) -> None:
    """APIError 415 unless the body is declared as uncompressed JSON, or any type is allowed.

    This is also a defence against other sites' pages: a browser sends a preflight for JSON. No
    other type is allowed from a browser, which marks every POST by a header.
    """
    headers = dict(scope["headers"])
    content_type = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    is_allowed = allows_any and headers.keys().isdisjoint((b"origin", b"sec-fetch-site"))
    if content_type != b"application/json" and not is_allowed:
        raise APIError(
            415,
            f"Content-Type must be application/json but is "
            f"{content_type[:100].decode('latin-1')!r}",
        )
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding != b"identity":
        raise APIError(
            415,
            f"Content-Encoding {encoding[:100].decode('latin-1')!r} is not supported; send the "
            "body uncompressed",
        )


async def read_body(
    scope: Scope, receive: Receive, limit: int, reserve: Callable[[int], None]
) -> bytes:
    """Read a body of at most `limit` bytes; `reserve` is called with the size of each part."""
    headers = dict(scope["headers"])
    too_large = APIError(413, f"the body must have at most {limit:,} bytes")
    with contextlib.suppress(ValueError):
        if int(headers.get(b"content-length", b"0")) > limit:
            raise too_large
    try:
        return await asyncio.wait_for(_read(receive, limit, too_large, reserve), BODY_TIMEOUT_S)
    except (TimeoutError, asyncio.TimeoutError):
        raise APIError(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None


async def write_body(
    send: Send,
    status: int,
    value: Any,
    content_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
) -> None:
    """Send a complete response: bytes unchanged, anything else as JSON."""
    body = value if isinstance(value, bytes) else msgspec.json.encode(value)
    fields = {"content-type": content_type, **(headers or {}), "content-length": str(len(body))}
    raw = [(name.lower().encode(), field.encode()) for name, field in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


async def write_error(send: Send, error: APIError, wire: WireFormat = OPENAI) -> None:
    """Send an error in the shape of a wire format."""
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    if error.status == 504:  # SDKs would wait for as long again
        headers["x-should-retry"] = "false"
    if error.status == 401:
        headers["www-authenticate"] = 'Basic realm="yocobit: any name, the API key as password"'
    await write_body(send, error.status, wire.error(error), headers=headers)


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return JSON as a Starlette response."""
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


async def _read(
    receive: Receive, limit: int, too_large: APIError, reserve: Callable[[int], None]
) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        if len(body) + len(part) > limit:
            raise too_large
        reserve(len(part))
        body += part
        if not message.get("more_body"):
            return bytes(body.removeprefix(codecs.BOM_UTF8))  # editors on Windows write it
