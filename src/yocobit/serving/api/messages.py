"""POST messages and messages/count_tokens: Anthropic's API, for its SDKs and Claude Code.

A body becomes a ChatRequest; its answer is rendered as blocks of content. Thinking, images,
documents and the tools of Anthropic's servers are refused. Hints for caching have no effect: every
prefix is cached.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta, Struct

from yocobit.serving import limits
from yocobit.serving.api import chat, protocol
from yocobit.serving.api.answer import Answer, CallArguments, CallStart, Content, Delta, Done
from yocobit.serving.api.chat import ChatRequest, PreparedChat
from yocobit.serving.api.constraints import JSONSchema, ResponseFormat
from yocobit.serving.api.generation import Generation, usage
from yocobit.serving.api.protocol import (
    ContentPart,
    Function,
    FunctionCall,
    Message,
    Name,
    NamedFunction,
    Tool,
    ToolCall,
    ToolChoice,
)
from yocobit.serving.api.refused_fields import Refused
from yocobit.serving.api.served_model import ServedModel
from yocobit.serving.api.wire import WireFormat, named_event
from yocobit.serving.errors import APIError
from yocobit.serving.runtime.request import Event, Finish, Prefilled, Token
from yocobit.serving.runtime.runtime import EventStream
from yocobit.settings import Fraction, Natural
from yocobit.text.generation_config import Temperature

# Claude Code's first system block. It differs in every request, so it would prevent prefix hits.
_BILLING = "x-anthropic-billing-header:"


class Block(Struct, kw_only=True):
    """A block of content: text, a call (tool_use), or its result."""

    type: str
    text: str | None = None
    id: Name | None = None
    name: Name | None = None
    input: dict[str, Any] | None = None
    tool_use_id: Name | None = None
    content: str | Annotated[list[Block], Meta(max_length=limits.PARTS)] | None = None


Blocks = str | Annotated[list[Block], Meta(max_length=limits.PARTS)]


class AnthropicMessage(Struct, kw_only=True):
    role: Literal["user", "assistant", "system"]
    content: Blocks


class ToolDefinition(Struct, kw_only=True):
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class Choice(Struct, kw_only=True):
    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Struct, kw_only=True):
    type: str


class OutputFormat(Struct, kw_only=True):
    type: Literal["json_schema"]
    schema: dict[str, Any] | bool


class OutputConfig(Struct, kw_only=True):
    effort: Name | None = None  # the variable reasoning_effort of the chat template
    format: OutputFormat | None = None


class ContextManagement(Struct, kw_only=True):
    edits: Annotated[list[Block], Meta(max_length=limits.PARTS)] | None = None


class CountRequest(Struct, kw_only=True):
    """The body of messages/count_tokens."""

    refused: ClassVar[Mapping[str, Refused]] = {
        "mcp_servers": Refused(([],), "this server calls no tools"),
        "container": Refused(),
    }

    messages: Annotated[list[AnthropicMessage], Meta(min_length=1, max_length=limits.MESSAGES)]
    model: Name | None = None
    system: Blocks | None = None
    tools: Annotated[list[ToolDefinition], Meta(max_length=limits.TOOLS)] | None = None
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None  # the earlier place of output_config.format
    context_management: ContextManagement | None = None


class MessagesRequest(CountRequest, kw_only=True):
    """The body of messages."""

    max_tokens: Natural
    stream: bool | None = None
    stop_sequences: Annotated[list[protocol.StopString], Meta(max_length=limits.STOPS)] | None = (
        None
    )
    temperature: Temperature | None = None
    top_p: Fraction | None = None
    top_k: Natural | None = None


def build(model: ServedModel, body: MessagesRequest, client: str) -> MessageGeneration:
    """Return the response to generate for a body; APIError 400 if it is invalid."""
    request = _to_chat(body)
    request.max_tokens = body.max_tokens
    request.stop = body.stop_sequences
    request.temperature, request.top_p, request.top_k = body.temperature, body.top_p, body.top_k
    return MessageGeneration(model, body, chat.prepare(model, request, client, is_clamped=True))


def count_tokens(model: ServedModel, body: CountRequest, client: str) -> bytes:
    """Return the response to a body as JSON; APIError 400 if it is invalid."""
    return msgspec.json.encode({"input_tokens": len(chat.prompt_tokens(model, _to_chat(body)))})


def is_heavy(body: MessagesRequest) -> bool:
    """Whether a schema must be compiled."""
    has_choice = body.tool_choice is not None and body.tool_choice.type in ("any", "tool")
    return has_choice or _response_format(body) is not None


class MessageGeneration(Generation):
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
        elif isinstance(event, Token | Finish):
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
        try:
            arguments = msgspec.json.decode(call.arguments)
        except (msgspec.DecodeError, RecursionError):  # cut by max_tokens
            arguments = {}
        blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": arguments})
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


# ---- requests


def _to_chat(body: CountRequest) -> ChatRequest:
    """Return the conversation of a body; APIError 400 if it is invalid."""
    variables: dict[str, Any] = {}
    for edit in (body.context_management and body.context_management.edits) or ():
        if not edit.type.startswith("clear_thinking"):  # there is no thinking to clear
            raise APIError(
                400,
                f"context_management: {edit.type!r} is not supported; leave it out",
                param="context_management",
            )
    if body.thinking is not None:
        # "adaptive" leaves it to the model, which never thinks.
        if body.thinking.type not in ("disabled", "adaptive"):
            raise APIError(
                400,
                f"thinking: {body.thinking.type!r} is not supported; disable it, or leave it out",
                param="thinking",
            )
        variables["enable_thinking"] = False
    if body.output_config is not None and body.output_config.effort is not None:
        variables["reasoning_effort"] = body.output_config.effort
    choice = body.tool_choice
    messages = _messages(body)
    return ChatRequest(
        messages=messages,
        # Anthropic: an answer continues a final message of the assistant.
        continue_final_message=messages[-1].role == "assistant" and not messages[-1].tool_calls,
        tools=[_tool(i, each) for i, each in enumerate(body.tools or [])] or None,
        tool_choice=None if choice is None else _tool_choice(choice),
        parallel_tool_calls=not choice.disable_parallel_tool_use if choice else None,
        response_format=_response_format(body),
        chat_template_kwargs=variables,
    )


def _response_format(body: CountRequest) -> ResponseFormat | None:
    form = body.output_format if body.output_config is None else body.output_config.format
    if form is None:
        return None
    return ResponseFormat(type="json_schema", json_schema=JSONSchema(schema=form.schema))


def _tool(i: int, tool: ToolDefinition) -> Tool:
    if tool.type not in (None, "custom"):
        raise APIError(
            400,
            f"tools[{i}]: {tool.type!r} runs on Anthropic's servers and is not supported; leave it "
            "out",
            param="tools",
        )
    function = Function(
        name=tool.name,
        description=tool.description,
        parameters=tool.input_schema,
        strict=tool.strict,
    )
    return Tool(type="function", function=function)


def _tool_choice(choice: Choice) -> Any:
    if choice.type != "tool":
        return "required" if choice.type == "any" else choice.type
    if choice.name is None:
        raise APIError(400, "tool_choice: the name of the tool is missing", param="tool_choice")
    return ToolChoice(function=NamedFunction(name=choice.name))


def _messages(body: CountRequest) -> list[Message]:
    """Return the messages of chat completions; those of one role in a row are one, as defined."""
    messages: list[Message] = []
    if system := _texts(body.system or [], "system"):
        messages.append(Message(role="system", content=system))
    for i, message in enumerate(body.messages):
        for each in _converted(message, f"messages[{i}].content"):
            if messages and messages[-1].role == each.role != "tool":
                _join(messages[-1], each)
            else:
                messages.append(each)
    if not messages:
        raise APIError(400, "messages have no content; give a text", param="messages")
    return messages


def _join(message: Message, more: Message) -> None:
    """Append the content and the calls of a message to another one."""
    assert not isinstance(message.content, str)
    assert not isinstance(more.content, str)
    message.content = [*(message.content or []), *(more.content or [])] or None
    message.tool_calls = [*(message.tool_calls or []), *(more.tool_calls or [])] or None


def _converted(message: AnthropicMessage, where: str) -> Iterator[Message]:
    """Yield the results of calls in a message, then the message."""
    content = message.content
    blocks = [Block(type="text", text=content)] if isinstance(content, str) else content
    calls = []
    for block in blocks:
        if block.type == "tool_result":
            result = _texts(block.content or [], f"{where}: tool_result")
            yield Message(role="tool", content=result, tool_call_id=block.tool_use_id)
        elif block.type == "tool_use":
            arguments = msgspec.json.encode(block.input or {}).decode()
            function = FunctionCall(name=block.name or "", arguments=arguments)
            calls.append(ToolCall(function=function, id=block.id))
    own = ("tool_result", "tool_use", "thinking", "redacted_thinking")
    texts = _texts([block for block in blocks if block.type not in own], where)
    if texts or calls:
        # A system message within the conversation, which many templates reject, is the user's.
        role: Any = "assistant" if message.role == "assistant" else "user"
        yield Message(role=role, content=texts or None, tool_calls=calls or None)


def _texts(blocks: Blocks, where: str) -> list[ContentPart]:
    """Return blocks of text as parts; APIError 400 for other blocks."""
    if isinstance(blocks, str):
        blocks = [Block(type="text", text=blocks)]
    for block in blocks:
        if block.type != "text":
            raise APIError(
                400,
                f"{where}: {block.type!r} blocks are not supported, only text",
                param=where.partition("[")[0].partition(".")[0],
            )
    texts = [block.text or "" for block in blocks]
    return [ContentPart(type="text", text=text) for text in texts if not text.startswith(_BILLING)]


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
