"""The body of Anthropic's messages: schema and conversion to a ChatRequest.

Thinking, images, documents and the tools of Anthropic's servers are refused. Hints for caching have
no effect: every prefix is cached.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from yocobit.serving import limits
from yocobit.serving.api import protocol
from yocobit.serving.api.chat_request import ChatRequest
from yocobit.serving.api.constraints import JSONSchema, ResponseFormat
from yocobit.serving.api.field_names import FieldNames
from yocobit.serving.api.protocol import (
    ContentPart,
    FunctionCall,
    FunctionName,
    Message,
    Name,
    Tool,
    ToolCall,
    function_choice,
    function_tool,
)
from yocobit.serving.api.refused_fields import (
    REFUSED,
    REFUSED_SAMPLING,
    Refused,
    refused_chat_fields,
)
from yocobit.serving.errors import APIError
from yocobit.settings import Fraction, Natural
from yocobit.text.generation_config import Temperature

T = TypeVar("T")
# Claude Code's first system block. It differs in every request, so it would prevent prefix hits.
_BILLING = "x-anthropic-billing-header:"


class ContentBlock(Struct, kw_only=True):
    """A block of content: text, a call (tool_use), or its result."""

    type: str
    text: str | None = None
    id: Name | None = None
    name: Name | None = None
    input: dict[str, Any] | None = None
    tool_use_id: Name | None = None
    content: str | Annotated[list[ContentBlock], Meta(max_length=limits.PARTS)] | None = None


Blocks = str | Annotated[list[ContentBlock], Meta(max_length=limits.PARTS)]


class AnthropicMessage(Struct, kw_only=True):
    role: Literal["user", "assistant", "system"]
    content: Blocks


class ToolDefinition(Struct, kw_only=True):
    name: FunctionName
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class AnthropicToolChoice(Struct, kw_only=True):
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
    edits: Annotated[list[ContentBlock], Meta(max_length=limits.PARTS)] | None = None


class CountRequest(Struct, kw_only=True):
    """The body of messages/count_tokens."""

    refused: ClassVar[Mapping[str, Refused]] = {
        **REFUSED,
        **refused_chat_fields("use output_config.format"),
        **REFUSED_SAMPLING,
        "stop": Refused(([],), "use stop_sequences"),
        "mcp_servers": Refused(([],), "this server calls no tools"),
        "container": Refused(),
    }

    messages: Annotated[list[AnthropicMessage], Meta(min_length=1, max_length=limits.MESSAGES)]
    model: Name | None = None
    system: Blocks | None = None
    tools: Annotated[list[ToolDefinition], Meta(max_length=limits.TOOLS)] | None = None
    tool_choice: AnthropicToolChoice | None = None
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


class AnthropicChat(ChatRequest, kw_only=True):
    """A conversation with Anthropic's names."""

    names: ClassVar[FieldNames] = FieldNames(
        {"response_format": "output_config.format"},
        response_schema="/output_config/format/schema",
        tool_schema="/tools/{}/input_schema",
    )


def chat_request(body: CountRequest) -> AnthropicChat:
    """Return a body as one of chat completions; APIError 400 if it is invalid."""
    variables: dict[str, Any] = {}
    for edit in (body.context_management and body.context_management.edits) or ():
        if not edit.type.startswith("clear_thinking"):  # the model has no thinking blocks to clear
            raise APIError(
                400,
                f"context_management: {edit.type!r} is not supported; leave it out",
                param="context_management",
            )
    if body.thinking is not None:
        # "adaptive" permits thinking, which is not supported: it is disabled.
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
    return AnthropicChat(
        messages=messages,
        # Anthropic: an answer continues a final message of the assistant.
        continue_final_message=messages[-1].role == "assistant" and not messages[-1].tool_calls,
        tools=[_tool(i, each) for i, each in enumerate(body.tools or [])] or None,
        tool_choice=None if choice is None else _tool_choice(choice),
        parallel_tool_calls=not choice.disable_parallel_tool_use if choice else None,
        response_format=response_format(body),
        chat_template_kwargs=variables,
    )


def response_format(body: CountRequest) -> ResponseFormat | None:
    """Return the format that the answer has to follow, if any."""
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
    return function_tool(tool.name, tool.description, tool.input_schema, tool.strict)


def _tool_choice(choice: AnthropicToolChoice) -> Any:
    if choice.type != "tool":
        return "required" if choice.type == "any" else choice.type
    if choice.name is None:
        raise APIError(400, "tool_choice: the name of the tool is missing", param="tool_choice")
    return function_choice(choice.name)


def _messages(body: CountRequest) -> list[Message]:
    """Return the messages of chat completions. As Anthropic defines, a role's in a row are one."""
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
    # Extended in place: there may be thousands of messages in a row.
    message.content = _extended(message.content, more.content)
    message.tool_calls = _extended(message.tool_calls, more.tool_calls)


def _extended(values: list[T] | None, more: list[T] | None) -> list[T] | None:
    """Return the first list with the second appended; None is empty."""
    if values is None or more is None:
        return more if values is None else values
    values += more
    return values


def _converted(message: AnthropicMessage, where: str) -> Iterator[Message]:
    """Yield the results of calls in a message, then the message."""
    content = message.content
    blocks = [ContentBlock(type="text", text=content)] if isinstance(content, str) else content
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
        blocks = [ContentBlock(type="text", text=blocks)]
    for block in blocks:
        if block.type != "text":
            raise APIError(
                400,
                f"{where}: {block.type!r} blocks are not supported, only text",
                param=where.partition("[")[0].partition(".")[0],
            )
    texts = [block.text or "" for block in blocks]
    return [ContentPart(type="text", text=text) for text in texts if not text.startswith(_BILLING)]
