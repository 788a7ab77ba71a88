"""POST messages and messages/count_tokens: Anthropic's API, for its SDKs and Claude Code.

A body becomes a ChatRequest (message_request.py); its answer is rendered as blocks of content.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import msgspec

from yocobit.serving.api.answer import Answer, CallArguments, CallStart, Content, Delta, Done
from yocobit.serving.api.chat_request import PreparedChat, prepare, prompt_tokens
from yocobit.serving.api.generated_response import GeneratedResponse, usage
from yocobit.serving.api.message_request import (
    CountRequest,
    MessagesRequest,
    chat_request,
    response_format,
)
from yocobit.serving.api.served_model import ServedModel
from yocobit.serving.api.wire import WireFormat, named_event
from yocobit.serving.errors import APIError
from yocobit.serving.runtime.request import Event, Prefilled
from yocobit.serving.runtime.runtime import EventStream


def build(model: ServedModel, body: MessagesRequest, client: str) -> MessageResponse:
    """Return the response to generate for a body; APIError 400 if it is invalid."""
    request = chat_request(body)
    request.max_tokens = body.max_tokens
    request.stop = body.stop_sequences
    request.temperature, request.top_p, request.top_k = body.temperature, body.top_p, body.top_k
    prepared = prepare(model, request, client, is_clamped=True)
    return MessageResponse(model, body, prepared)


def count_tokens(model: ServedModel, body: CountRequest, client: str) -> bytes:
    """Return the response to a body as JSON; APIError 400 if it is invalid."""
    return msgspec.json.encode({"input_tokens": len(prompt_tokens(model, chat_request(body)))})


def is_heavy(body: MessagesRequest) -> bool:
    """Whether a schema must be compiled."""
    has_choice = body.tool_choice is not None and body.tool_choice.type in ("any", "tool")
    return has_choice or response_format(body) is not None


class MessageResponse(GeneratedResponse):
    """The response of messages: one answer, as blocks of content."""

    def __init__(self, model: ServedModel, body: MessagesRequest, prepared: PreparedChat) -> None:
        super().__init__(model, [prepared.request], bool(body.stream), prepared.grammar)
        self._id = f"msg_{secrets.token_hex(12)}"
        self._model_name = body.model or model.name
        self._stop_sequences = frozenset(body.stop_sequences or ())
        self._has_room = prepared.request.max_tokens == body.max_tokens
        (self._answer,) = prepared.answers()
        self._n_blocks = 0
        self._open: str | None = None  # the type of the block that is being streamed

    def add(self, index: int, event: Event) -> None:
        self._answer.add(event)

    def whole(self, stream: EventStream) -> dict[str, Any]:
        return self._message(_blocks(self._answer), self._stop(), _usage(stream))

    def chunks_of(self, index: int, event: Event, stream: EventStream) -> Iterator[dict[str, Any]]:
        if isinstance(event, Prefilled):
            message = self._message([], self._stop(), {**_usage(stream), "output_tokens": 0})
            yield {"type": "message_start", "message": message}
            yield {"type": "ping"}
        for delta in self._answer.add(event):
            yield from self._events(delta)

    def last_chunks(self, stream: EventStream) -> Iterator[dict[str, Any]]:
        yield {"type": "message_delta", "delta": self._stop(), "usage": _usage(stream)}
        yield {"type": "message_stop"}

    def _events(self, delta: Delta) -> Iterator[dict[str, Any]]:
        if isinstance(delta, Content) and delta.text:
            if self._open != "text":
                yield from self._start_block({"type": "text", "text": ""})
            yield self._block_delta({"type": "text_delta", "text": delta.text})
        elif isinstance(delta, CallStart):
            call = {"type": "tool_use", "id": delta.id, "name": delta.name, "input": {}}
            yield from self._start_block(call)
        elif isinstance(delta, CallArguments):
            yield self._block_delta({"type": "input_json_delta", "partial_json": delta.text})
        elif isinstance(delta, Done):
            yield from self._end_block()

    def _start_block(self, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self._end_block()
        self._open = block["type"]
        yield {"type": "content_block_start", "index": self._n_blocks, "content_block": block}

    def _block_delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._n_blocks, "delta": delta}

    def _end_block(self) -> Iterator[dict[str, Any]]:
        if self._open is not None:
            yield {"type": "content_block_stop", "index": self._n_blocks}
            self._n_blocks += 1
            self._open = None

    def _message(
        self, content: list[dict[str, Any]], stop: dict[str, Any], usage: dict[str, Any]
    ) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model_name,
            "content": content,
            **stop,
            "usage": usage,
        }

    def _stop(self) -> dict[str, Any]:
        """Return why the answer ended; null before that."""
        reason, sequence = None, None
        if (done := self._answer.done) is not None:
            if done.matched_stop in self._stop_sequences:
                reason, sequence = "stop_sequence", done.matched_stop
            elif done.reason == "length":
                reason = "max_tokens" if self._has_room else "model_context_window_exceeded"
            else:
                reason = "tool_use" if done.reason == "tool_calls" else "end_turn"
        return {"stop_reason": reason, "stop_sequence": sequence}


def _blocks(answer: Answer) -> list[dict[str, Any]]:
    """Return an answer as blocks of content."""
    blocks: list[dict[str, Any]] = []
    if answer.text:
        blocks.append({"type": "text", "text": answer.text})
    for call in answer.calls:
        use = {"type": "tool_use", "id": call.id, "name": call.name}
        blocks.append({**use, "input": call.decoded_arguments})
    return blocks


def _usage(stream: EventStream) -> dict[str, Any]:
    found = usage(stream.groups)
    n_cached = found["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": found["prompt_tokens"] - n_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": n_cached,
        "output_tokens": found["completion_tokens"],
    }


# ---- the wire format

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def _error(error: APIError) -> dict[str, Any]:
    if error.status in _ERROR_TYPES:
        kind = _ERROR_TYPES[error.status]
    else:
        kind = "invalid_request_error" if error.status < 500 else "api_error"
    return {"type": "error", "error": {"type": kind, "message": str(error)}}


ANTHROPIC = WireFormat(
    named_event,
    ping=named_event({"type": "ping"}),
    error=_error,
    error_name="AnthropicError",
    error_schema={
        "type": "object",
        "required": ["type", "error"],
        "properties": {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "required": ["type", "message"],
                "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
)
