"""Wire formats: how a protocol frames the events of a stream, and the shape of its errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from yocobit.serving.errors import APIError


def data_event(value: Any) -> bytes:
    """Return an object as a server-sent event without a name."""
    return b"data: %b\n\n" % msgspec.json.encode(value)


def named_event(value: dict[str, Any]) -> bytes:
    """Return an object as a server-sent event whose name is the object's type."""
    return b"event: %b\n%b" % (value["type"].encode(), data_event(value))


OPENAI_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


@dataclasses.dataclass(frozen=True)
class WireFormat:
    """How the endpoints of one protocol encode streams and errors."""

    frame: Callable[[Any], bytes]  # encodes an event of a stream
    end: bytes = b""  # of a stream
    ping: bytes = b": ping\n\n"  # sent while a stream is idle; empty: nothing is sent
    stream_type: str = "text/event-stream"
    error: Callable[[APIError], Any] = APIError.to_dict  # a response body, or an event
    error_name: str = "Error"  # of the schema in the OpenAPI description
    error_schema: Mapping[str, Any] = dataclasses.field(default_factory=lambda: OPENAI_ERROR)


OPENAI = WireFormat(data_event, end=b"data: [DONE]\n\n")
RESPONSES = WireFormat(named_event)  # of OpenAI's later API
