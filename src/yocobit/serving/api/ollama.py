"""POST api/chat and api/generate: Ollama's API, for its clients.

A body becomes a ChatRequest; its answer is rendered as lines of JSON.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta, Struct

from yocobit.serving import limits
from yocobit.serving.api import generated_response, protocol
from yocobit.serving.api.answer import Content, Done, GeneratedCall
from yocobit.serving.api.call import Call, Events, Reply, reply
from yocobit.serving.api.chat_request import ChatRequest, PreparedChat, prepare
from yocobit.serving.api.field_names import FieldNames
from yocobit.serving.api.generated_response import GeneratedResponse, usage
from yocobit.serving.api.protocol import Message, Name, Tool
from yocobit.serving.api.refused_fields import (
    REFUSED,
    REFUSED_SAMPLING,
    Refused,
    check_value,
    refused_chat_fields,
)
from yocobit.serving.api.served_model import ServedModel
from yocobit.serving.api.wire import WireFormat
from yocobit.serving.errors import APIError
from yocobit.serving.runtime.request import Event
from yocobit.serving.runtime.runtime import EventStream

# The names of options as fields of ChatRequest. Other options do not change the answer.
_OPTIONS = {
    "num_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    **{
        name: name
        for name in (
            *("temperature", "top_k", "top_p", "min_p", "seed", "stop"),
            *("presence_penalty", "frequency_penalty", "repeat_last_n"),
        )
    },
}
_REFUSED_OPTIONS = {**REFUSED, **REFUSED_SAMPLING, **refused_chat_fields("use format")}


OLLAMA = WireFormat(
    lambda value: msgspec.json.encode(value) + b"\n",
    ping=b"",
    stream_type="application/x-ndjson",
    error=lambda error: {"error": str(error)},
    error_name="OllamaError",
    error_schema={
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "string"}},
    },
)


class OllamaFunction(Struct, kw_only=True):
    name: Name
    arguments: dict[str, Any] = {}


class OllamaCall(Struct, kw_only=True):
    function: OllamaFunction
    id: Name | None = None


class OllamaMessage(Struct, kw_only=True):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    images: list[Any] | None = None  # rejected
    tool_calls: Annotated[list[OllamaCall], Meta(max_length=limits.TOOLS)] | None = None
    tool_name: Name | None = None
    tool_call_id: Name | None = None


class OllamaChat(ChatRequest, kw_only=True):
    """A conversation with Ollama's names."""

    names: ClassVar[FieldNames] = FieldNames(
        {
            "response_format": "format",
            "max_completion_tokens": "options.num_predict",
            **{name: f"options.{option}" for option, name in _OPTIONS.items()},
        },
        response_schema="/format",
    )


class _Body(Struct, kw_only=True):
    """Fields of chat and generate. Streaming is the default."""

    refused: ClassVar[Mapping[str, Refused]] = {
        "think": Refused((False,)),
        "images": Refused(([],)),
        "suffix": Refused(("",)),
        "template": Refused(("",), "that of the model is applied"),
        "context": Refused(([],), "use api/chat"),
    }

    model: Name
    stream: bool | None = None
    format: Literal["json", ""] | dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=limits.LOGPROBS)] | None = None
    keep_alive: float | str | None = None  # the model stays loaded


class OllamaChatRequest(_Body, kw_only=True):
    """The body of api/chat. Without messages, nothing is generated."""

    messages: Annotated[list[OllamaMessage], Meta(max_length=limits.MESSAGES)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=limits.TOOLS)] | None = None


class GenerateRequest(_Body, kw_only=True):
    """The body of api/generate. Without a prompt, nothing is generated."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None  # continue the prompt, without the chat template


def build_chat(model: ServedModel, body: OllamaChatRequest, client: str) -> OllamaResponse | bytes:
    """Return the response to generate for a body; JSON if there is nothing to generate."""
    if not body.messages:
        return _loaded(body, {"message": {"role": "assistant", "content": ""}})
    request = _to_chat(body, [_message(i, each) for i, each in enumerate(body.messages)])
    request.tools = body.tools
    prepared = prepare(model, request, client, is_clamped=True)
    return OllamaResponse(model, body, prepared)


def build_generate(
    model: ServedModel, body: GenerateRequest, client: str
) -> OllamaResponse | bytes:
    """Return the response to generate for a body; JSON if there is nothing to generate."""
    if not body.prompt:
        return _loaded(body, {"response": ""})
    messages, prompt = [Message(role="user", content=body.prompt)], None
    if body.raw or not model.has_chat_template:
        prompt = model.prompts.encode(body.prompt, "prompt")
    elif body.system:
        messages.insert(0, Message(role="system", content=body.system))
    request = _to_chat(body, messages)
    prepared = prepare(model, request, client, is_clamped=True, prompt=prompt)
    return OllamaResponse(model, body, prepared)


def is_heavy(body: _Body) -> bool:
    """Whether a schema must be compiled."""
    return bool(body.format)


async def generate(call: Call) -> Reply | Events:
    """Handle a request to chat or generate."""
    is_empty = isinstance(call.prepared, bytes)
    return await (reply(call) if is_empty else generated_response.generate(call))


class OllamaResponse(GeneratedResponse):
    """The response of chat and generate: one answer, whole or in lines."""

    def __init__(self, model: ServedModel, body: _Body, prepared: PreparedChat) -> None:
        super().__init__(model, [prepared.request], body.stream is not False, prepared.grammar)
        self._model_name = body.model
        self._is_chat = isinstance(body, OllamaChatRequest)
        self._has_logprobs = bool(body.logprobs)
        (self._answer,) = prepared.answers()

    def add(self, index: int, event: Event) -> None:
        self._answer.add(event)

    def whole(self, stream: EventStream) -> dict[str, Any]:
        answer = self._answer
        return {
            **self._line(answer.text, answer.calls),
            **self._logprobs(answer.logprobs),
            **self._end(stream),
        }

    def chunks_of(self, index: int, event: Event, stream: EventStream) -> Iterator[dict[str, Any]]:
        for delta in self._answer.add(event):
            if isinstance(delta, Content):
                yield {**self._line(delta.text), **self._logprobs(delta.logprobs)}
            elif isinstance(delta, Done) and self._answer.calls:
                yield self._line("", self._answer.calls)

    def last_chunks(self, stream: EventStream) -> Iterator[dict[str, Any]]:
        yield {**self._line(""), **self._end(stream)}

    def _line(self, text: str, calls: Iterable[GeneratedCall] = ()) -> dict[str, Any]:
        line = {"model": self._model_name, "created_at": _now()}
        if not self._is_chat:
            return {**line, "response": text, "done": False}
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if rendered := [_call(i, each) for i, each in enumerate(calls)]:
            message["tool_calls"] = rendered
        return {**line, "message": message, "done": False}

    def _logprobs(self, found: Iterable[Any]) -> dict[str, Any]:
        entries = [self.logprob(each) for each in found]
        return {"logprobs": entries} if self._has_logprobs else {}

    def _end(self, stream: EventStream) -> dict[str, Any]:
        done = self._answer.done
        found = usage(stream.groups)
        return {
            "done": True,
            "done_reason": "length" if done is not None and done.reason == "length" else "stop",
            "total_duration": _ns(found["queue_time"] + found["total_time"]),
            "load_duration": 0,
            "prompt_eval_count": found["prompt_tokens"],
            "prompt_eval_duration": _ns(found["prompt_time"]),
            "eval_count": found["completion_tokens"],
            "eval_duration": _ns(found["completion_time"]),
        }


def _to_chat(body: _Body, messages: list[Message]) -> ChatRequest:
    """Return the conversation of a body; APIError 400 if it is invalid."""
    fields: dict[str, Any] = {}
    for name, value in (body.options or {}).items():
        if name in _OPTIONS:
            fields[_OPTIONS[name]] = value
        elif name in _REFUSED_OPTIONS:
            check_value(f"options.{name}", value, _REFUSED_OPTIONS[name])
    if (limit := fields.get("max_tokens")) is not None and isinstance(limit, int) and limit < 1:
        fields["max_tokens"] = -1  # 0 and below: until the end
    if body.format == "json":
        fields["response_format"] = {"type": "json_object"}
    elif body.format:
        fields["response_format"] = {"type": "json_schema", "json_schema": {"schema": body.format}}
    if body.think is not None:
        fields["chat_template_kwargs"] = {"enable_thinking": False}
    if body.logprobs:
        fields |= {"logprobs": True, "top_logprobs": body.top_logprobs or 0}
    fields["messages"] = [{"role": "user", "content": ""}]  # checked already
    request = protocol.from_fields(fields, OllamaChat)
    request.messages = messages
    return request


def _message(i: int, message: OllamaMessage) -> Message:
    if message.images:
        raise APIError(
            400, f"messages[{i}].images are not supported; leave them out", param="messages"
        )
    calls = [
        {
            "id": call.id,
            "function": {
                "name": call.function.name,
                "arguments": msgspec.json.encode(call.function.arguments).decode(),
            },
        }
        for call in message.tool_calls or []
    ]
    return msgspec.convert(
        {
            "role": message.role,
            "content": message.content or "",
            "name": message.tool_name,
            "tool_call_id": message.tool_call_id,
            "tool_calls": calls or None,
        },
        Message,
    )


def _call(index: int, call: GeneratedCall) -> dict[str, Any]:
    function = {"index": index, "name": call.name, "arguments": call.decoded_arguments}
    return {"id": call.id, "function": function}


def _loaded(body: _Body, empty: Mapping[str, Any]) -> bytes:
    """Return the response to a request that generates nothing, as JSON."""
    reason = "unload" if body.keep_alive == 0 else "load"
    line = {"model": body.model, "created_at": _now(), **empty, "done": True, "done_reason": reason}
    return msgspec.json.encode(line)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat().replace("+00:00", "Z")


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
