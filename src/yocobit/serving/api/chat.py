"""POST chat/completions: a conversation in, the assistant's answer out."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from yocobit.config import ConfigError
from yocobit.serving import limits
from yocobit.serving.api import protocol, tools
from yocobit.serving.api.generation import Completion, check_stream_options, stop_strings
from yocobit.serving.api.protocol import Name, Sampling, Tool, ToolChoice
from yocobit.serving.api.served_model import ServedModel
from yocobit.serving.errors import APIError
from yocobit.serving.runtime.request import Event, Finish, Request, Token
from yocobit.serving.runtime.runtime import EventStream
from yocobit.serving.runtime.structured_output import Schema
from yocobit.settings import Count


class JSONSchema(Struct, kw_only=True):
    name: Name | None = None
    schema: dict[str, Any] | bool | None = None


class ResponseFormat(Struct, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None


class ChatRequest(Sampling, kw_only=True):
    """The body of chat/completions."""

    messages: protocol.Messages
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=limits.LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Meta(max_length=limits.TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Any] | None = None  # rejected: OpenAI's API before tools
    function_call: Any = None

    @property
    def offered_tools(self) -> list[Tool]:
        """The tools that the model may call."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def requires_call(self) -> bool:
        """Whether the answer has to be a tool call."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, ToolChoice)


def build(model: ServedModel, body: ChatRequest, client: str) -> ChatCompletion:
    """Return the generation request of a body; APIError 400 if it is invalid."""
    check_stream_options(body)
    if body.functions or body.function_call not in (None, "none", "auto"):
        raise APIError(
            400, "functions and function_call are not supported; use tools", param="functions"
        )
    if body.top_logprobs and not body.logprobs:
        raise APIError(400, "top_logprobs requires logprobs to be true", param="top_logprobs")
    prompt = render(model, body.messages, body.offered_tools)
    max_tokens = body.max_completion_tokens or body.max_tokens
    if max_tokens is None:
        max_tokens = max(1, model.settings.context - len(prompt))
    request = Request(
        prompt=tuple(prompt),
        max_tokens=max_tokens,
        sampling=model.sampling(body),
        stop=(*stop_strings(body.stop), *model.engine.stop_strings),
        logit_bias=model.logit_bias(body),
        n_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        client=client,
        timeout_s=model.settings.timeout_s,
    )
    model.check(request, param="messages")
    model.check_logprobs([request])
    if (schema := _schema(model, body, max_tokens)) is not None:
        if body.stop:
            field = "tool_choice" if body.requires_call else "response_format"
            raise APIError(
                400,
                f"stop could truncate the JSON that {field} requires; leave one of the two out",
                param="stop",
            )
        # JSON may contain a string that otherwise ends the model's turn.
        request = dataclasses.replace(request, stop=())
    return ChatCompletion(model, body, request, schema)


def is_heavy(body: ChatRequest) -> bool:
    """Whether a schema must be compiled."""
    has_schema = body.response_format is not None and body.response_format.type != "text"
    return has_schema or body.requires_call


@dataclasses.dataclass
class _Choice:
    """The part of an answer that has been generated."""

    parser: tools.ToolCallParser | None
    text: str = ""
    calls: list[tools.Call] = dataclasses.field(default_factory=list)
    logprobs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    reason: str | None = None

    def add(self, text: str, is_last: bool) -> tuple[str, list[tools.Call]]:
        """Append text; return the part of it that is content, and the calls that it completes."""
        content, calls = text, list[tools.Call]()
        if self.parser is not None:
            content, calls = self.parser.add(text)
            if is_last:
                rest, more = self.parser.finish()
                content, calls = content + rest, calls + more
        self.text += content
        self.calls += calls
        return content, calls


class ChatCompletion(Completion):
    """The response to one request."""

    id_prefix = "chatcmpl"
    object_name = "chat.completion"
    chunk_object_name = "chat.completion.chunk"

    def __init__(
        self, model: ServedModel, body: ChatRequest, request: Request, schema: Schema | None
    ) -> None:
        super().__init__(model, body, [request])
        self.schema = schema
        self._has_logprobs = bool(body.logprobs)
        names = [tool.function.name for tool in body.offered_tools]
        self._choices = [
            _Choice(tools.ToolCallParser(names, body.requires_call) if names else None)
            for _ in request.sampling
        ]

    def attach(self, model: ServedModel) -> None:
        super().attach(model)
        if self.schema is not None:
            guided = model.grammars.factory(self.schema)
            self.requests = [dataclasses.replace(each, guided=guided) for each in self.requests]

    def add(self, index: int, event: Event) -> None:
        if not isinstance(event, Token | Finish):
            return
        choice = self._choices[event.choice]
        choice.add(event.text, is_last=isinstance(event, Finish))
        if isinstance(event, Finish):
            choice.reason = event.reason
        elif event.logprob is not None:
            choice.logprobs.append(self.logprob(event.logprob))

    def choices(self) -> list[dict[str, Any]]:
        return [self._choice(i, choice) for i, choice in enumerate(self._choices)]

    def first_chunks(self) -> Iterator[dict[str, Any]]:
        for i in range(len(self._choices)):
            delta = _delta(i, {"role": "assistant", "content": ""})
            yield self.chunk(delta, is_first=i == 0)

    def chunks_of(self, index: int, event: Event, stream: EventStream) -> Iterator[dict[str, Any]]:
        if not isinstance(event, Token | Finish):
            return
        choice, is_last = self._choices[event.choice], isinstance(event, Finish)
        first_call = len(choice.calls)
        content, calls = choice.add(event.text, is_last)
        logprobs = None
        if isinstance(event, Token) and event.logprob is not None:
            logprobs = {"content": [self.logprob(event.logprob)], "refusal": None}
        if content or logprobs:
            yield self.chunk(_delta(event.choice, {"content": content}, logprobs=logprobs))
        for i, call in enumerate(calls, first_call):
            delta = {"tool_calls": [{"index": i, **_call(call)}]}
            yield self.chunk(_delta(event.choice, delta))
        if isinstance(event, Finish):
            reason = "tool_calls" if choice.calls else event.reason
            finished = self.finish_choice(stream)
            yield self.chunk(_delta(event.choice, {}, finish_reason=reason), finished)

    def _choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.calls:
            message["content"] = choice.text or None
            message["tool_calls"] = [_call(call) for call in choice.calls]
        logprobs = {"content": choice.logprobs, "refusal": None} if self._has_logprobs else None
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": "tool_calls" if choice.calls else choice.reason,
        }


def render(
    model: ServedModel, messages: list[protocol.Message], offered_tools: list[Tool]
) -> list[int]:
    """Return the prompt of a conversation as tokens; APIError 400 for invalid messages."""
    for i, message in enumerate(messages):
        if message.content is None and not (message.role == "assistant" and message.tool_calls):
            raise APIError(
                400,
                f"messages[{i}].content is missing; give a text",
                param=f"messages[{i}].content",
            )
        for part in message.content if isinstance(message.content, list) else ():
            if part.type != "text":
                raise APIError(
                    400,
                    f"messages[{i}].content: {part.type!r} parts are not supported, only text",
                    param="messages",
                )
    model.check_length(sum(map(protocol.length, messages)), "messages")
    variables = {"tools": tools.to_template(offered_tools)} if offered_tools else {}
    try:
        template = model.engine.chat_template
        text = template.render(protocol.to_template(messages), **variables)
    except ConfigError as error:
        # The template's own message, without the path of its file.
        reason = str(error).replace(f"{model.engine.model.path}/", "")
        raise APIError(400, reason, param="messages") from None
    return model.encode(text, "messages")


def _schema(model: ServedModel, body: ChatRequest, max_tokens: int) -> Schema | None:
    """Return the schema that a request's output follows; None if any output is valid."""
    choice = body.tool_choice

    def check(schema: dict[str, Any] | bool, param: str) -> Schema:
        return model.grammars.check(schema, param, max_tokens)

    if body.requires_call:
        named = choice.function.name if isinstance(choice, ToolChoice) else None
        callable_tools = [t for t in body.offered_tools if named in (None, t.function.name)]
        if not callable_tools:
            what = f"the function {named!r}" if named else "a function"
            raise APIError(
                400, f"tool_choice requires {what}, which is not in tools", param="tool_choice"
            )
        return check(tools.schema_of_calls(callable_tools), "tools")
    response = body.response_format
    if response is None or response.type == "text":
        return None
    if response.type == "json_object":
        return check({"type": "object"}, "response_format")
    if response.json_schema is None or response.json_schema.schema is None:
        raise APIError(
            400, "response_format: json_schema.schema is missing", param="response_format"
        )
    return check(response.json_schema.schema, "response_format")


def _delta(
    index: int,
    delta: dict[str, Any],
    *,
    logprobs: dict[str, Any] | None = None,
    finish_reason: str | None = None,
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _call(call: tools.Call) -> dict[str, Any]:
    return {
        "id": f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
