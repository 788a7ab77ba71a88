"""Items of the Responses API: the parts of a conversation, and their conversion to messages.

A message, a function call and the output of a call are items of their own; in a conversation for
the chat template, calls belong to the assistant's message before them.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from yocobit.errors import shown
from yocobit.serving import limits
from yocobit.serving.api.protocol import ContentPart, FunctionCall, Message, Name, ToolCall
from yocobit.serving.errors import APIError

_TEXT_PARTS = ("input_text", "output_text", "text", "refusal")


class ItemPart(Struct, kw_only=True):
    """A part of a message's content, or of a function's output."""

    type: Name
    text: str | None = None
    refusal: str | None = None


Parts = Annotated[list[ItemPart], Meta(max_length=limits.PARTS)]


class Item(Struct, kw_only=True):
    """An item of input: a message unless it has a type."""

    type: Name | None = None
    id: Name | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | Parts | None = None
    call_id: Name | None = None  # of function_call and function_call_output
    name: Name | None = None
    arguments: str | None = None
    output: str | Parts | None = None


Items = Annotated[list[Item], Meta(max_length=limits.MESSAGES)]


class Output(Struct, kw_only=True):
    """The part of a stored response that continues a conversation."""

    output: list[Item]


def resolve(items: Iterable[Item], stored: Mapping[str, Item]) -> Iterator[tuple[int, Item]]:
    """Yield items with their indices, references resolved, without reasoning.

    Reasoning is useful only to the model that wrote it. APIError 400 for an unknown reference.
    """
    for i, item in enumerate(items):
        if item.type == "item_reference":
            found = stored.get(item.id or "")
            if found is None:
                raise _invalid(i, f"there is no item {shown(item.id)} to refer to")
            item = found
        if item.type != "reasoning":
            yield i, item


def append_messages(messages: list[Message], items: Iterable[tuple[int, Item]]) -> None:
    """Append items with their indices as messages; APIError 400 that names an invalid item."""
    for i, item in items:
        kind = item.type or "message"
        if kind == "message":
            messages.append(_message(i, item))
        elif kind == "function_call":
            call = _call(i, item)
            if messages and messages[-1].role == "assistant":
                messages[-1].tool_calls = [*(messages[-1].tool_calls or ()), call]
            else:
                messages.append(Message(role="assistant", tool_calls=[call]))
        elif kind == "function_call_output":
            if item.call_id is None or item.output is None:
                raise _invalid(i, "function_call_output must have a call_id and an output")
            content = _content(i, item.output)
            messages.append(Message(role="tool", tool_call_id=item.call_id, content=content))
        else:
            raise _invalid(
                i,
                f"items of type {shown(kind, 100)} are not supported, only message, function_call, "
                "function_call_output, item_reference and reasoning",
            )


def to_stored(items: Iterable[Item]) -> list[dict[str, Any]]:
    """Return valid items as the API lists them: complete, each with an id."""
    return [_to_stored(item) for item in items]


def new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(24)}"


def _message(i: int, item: Item) -> Message:
    if item.role is None or item.content is None:
        raise _invalid(i, "a message must have a role and content")
    return Message(role=item.role, content=_content(i, item.content))


def _content(i: int, content: str | list[ItemPart]) -> str | list[ContentPart]:
    if isinstance(content, str):
        return content
    for part in content:
        if part.type not in _TEXT_PARTS:
            raise _invalid(i, f"{shown(part.type, 100)} parts are not supported, only text")
    return [ContentPart(type="text", text=_text(part)) for part in content]


def _text(part: ItemPart) -> str:
    return (part.refusal if part.type == "refusal" else part.text) or ""


def _call(i: int, item: Item) -> ToolCall:
    if item.call_id is None or item.name is None or item.arguments is None:
        raise _invalid(i, "function_call must have a call_id, a name and arguments")
    function = FunctionCall(name=item.name, arguments=item.arguments)
    return ToolCall(id=item.call_id, type="function", function=function)


def _to_stored(item: Item) -> dict[str, Any]:
    if item.type == "function_call":
        call = {"call_id": item.call_id, "name": item.name, "arguments": item.arguments}
        return {"type": item.type, "id": item.id or new_id("fc"), "status": "completed", **call}
    if item.type == "function_call_output":
        output = item.output
        if isinstance(output, list):
            output = "".join(map(_text, output))
        found = {"type": item.type, "id": item.id or new_id("fco"), "status": "completed"}
        return {**found, "call_id": item.call_id, "output": output}
    content = item.content
    texts = [content] if isinstance(content, str) else [_text(part) for part in content or ()]
    parts: list[dict[str, Any]] = [{"type": "input_text", "text": text} for text in texts]
    if item.role == "assistant":
        parts = [output_text(text) for text in texts]
    return {
        "type": "message",
        "id": item.id or new_id("msg"),
        "status": "completed",
        "role": item.role,
        "content": parts,
    }


def output_text(text: str, logprobs: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return a text of the assistant as a part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs or []}


def _invalid(i: int, message: str) -> APIError:
    return APIError(400, f"input[{i}]: {message}", param=f"input[{i}]")
