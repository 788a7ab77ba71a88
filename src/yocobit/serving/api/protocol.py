"""Request schemas that several endpoints share: OpenAI's, with the fields of vLLM and llama.cpp.

Unknown fields are accepted and have no effect; null means absent.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from yocobit.engine.sampling import Penalty
from yocobit.errors import printable
from yocobit.reading import wrong_field
from yocobit.serving import limits
from yocobit.serving.errors import APIError
from yocobit.settings import Fraction, PositiveFraction
from yocobit.text.generation_config import RepetitionPenalty, Temperature

Choices = Annotated[int, Meta(ge=1, le=limits.CHOICES)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Name = Annotated[str, Meta(max_length=limits.NAME_CHARS)]
StopString = Annotated[str, Meta(min_length=1, max_length=limits.STOP_CHARS)]
Stop = StopString | Annotated[list[StopString], Meta(max_length=limits.STOPS)]

# One prompt or several, as text or tokens.
Prompt = str | list[str | int | list[int]]


T = TypeVar("T")


class StreamOptions(Struct):
    include_usage: bool | None = None


class Sampling(Struct, kw_only=True):
    """Fields of chat completions and completions: streaming, choices and sampling."""

    model: Name | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Choices | None = None
    stop: Stop | None = None
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    temperature: Temperature | None = None
    top_p: PositiveFraction | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Fraction | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    logit_bias: Annotated[dict[str, Bias], Meta(max_length=limits.BIASES)] | None = None


class Function(Struct, kw_only=True):
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct, kw_only=True):
    type: Literal["function"]
    function: Function


class NamedFunction(Struct, kw_only=True):
    name: Name


class ToolChoice(Struct, kw_only=True):
    type: Literal["function"]
    function: NamedFunction


class ContentPart(Struct, kw_only=True):
    type: str
    text: str | None = None


class FunctionCall(Struct, kw_only=True):
    name: Name
    arguments: str


class ToolCall(Struct, kw_only=True):
    function: FunctionCall
    id: Name | None = None
    type: Literal["function"] | None = None


class Message(Struct, kw_only=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[ContentPart], Meta(max_length=limits.PARTS)] | None = None
    name: Name | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=limits.TOOLS)] | None = None
    tool_call_id: Name | None = None


Messages = Annotated[list[Message], Meta(min_length=1, max_length=limits.MESSAGES)]


def decode(body: bytes, kind: type[T]) -> T:
    """Return JSON as that type; APIError 400 that names the field if it is invalid."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        field, message = wrong_field(error)
        param, message = printable(field, 200) or None, printable(message, 300)
        raise APIError(400, f"{param}: {message}" if param else message, param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise APIError(400, f"the body is not valid JSON: {error}") from None


def length(message: Message) -> int:
    """Return the characters of a message's content."""
    content = message.content
    if isinstance(content, list):
        return sum(len(part.text or "") for part in content)
    return len(content or "")


def to_template(messages: list[Message]) -> list[dict[str, Any]]:
    """Return messages in the form of chat templates: content is text, arguments are an object."""
    return [_to_template(message) for message in messages]


def _to_template(message: Message) -> dict[str, Any]:
    content = message.content
    if isinstance(content, list):
        content = "".join(part.text or "" for part in content)
    role = "system" if message.role == "developer" else message.role
    result: dict[str, Any] = {"role": role, "content": content or ""}
    if message.name is not None:
        result["name"] = message.name
    if message.tool_call_id is not None:
        result["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        result["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.function.name,
                    "arguments": _parsed(call.function.arguments),
                },
            }
            for call in message.tool_calls
        ]
    return result


def _parsed(arguments: str) -> Any:
    try:
        return msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):  # not JSON, or too deep
        return arguments
