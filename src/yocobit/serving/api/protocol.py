"""Request schemas that several endpoints share: OpenAI's, with the fields of vLLM and llama.cpp.

Fields that would change the answer and are not supported are refused (refused_fields.py). Other
unknown fields are accepted and have no effect; null means absent.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from yocobit.engine.sampling import Penalty
from yocobit.errors import printable
from yocobit.reading import wrong_field
from yocobit.serving import limits
from yocobit.serving.api.field_names import OPENAI_NAMES, FieldNames
from yocobit.serving.api.refused_fields import REFUSED, Refused, check_refused
from yocobit.serving.errors import APIError
from yocobit.settings import Fraction, Natural
from yocobit.text.generation_config import RepetitionPenalty, Temperature

Choices = Annotated[int, Meta(ge=1, le=limits.CHOICES)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Name = Annotated[str, Meta(max_length=limits.NAME_CHARS)]
FunctionName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]  # OpenAI's
StopString = Annotated[str, Meta(min_length=1, max_length=limits.STOP_CHARS)]
Stop = StopString | Annotated[list[StopString], Meta(max_length=limits.STOPS)]
MaxTokens = Annotated[int, Meta(ge=-1)]  # -1: the rest of the context, as in llama.cpp
# By token; or llama.cpp's pairs, in which false excludes a token.
LogitBias = (
    Annotated[dict[str, Bias], Meta(max_length=limits.BIASES)]
    | Annotated[list[tuple[Natural, Bias | bool]], Meta(max_length=limits.BIASES)]
)

# One prompt or several, as text or tokens.
Prompt = str | list[str | int | list[int]]


T = TypeVar("T")


class StreamOptions(Struct):
    include_usage: bool | None = None


class Sampling(Struct, kw_only=True):
    """Fields of chats and completions: streaming, choices, sampling and end conditions."""

    refused: ClassVar[Mapping[str, Refused]] = REFUSED
    names: ClassVar[FieldNames] = OPENAI_NAMES

    model: Name | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Choices | None = None
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    temperature: Temperature | None = None
    top_p: Fraction | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Fraction | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    repeat_penalty: RepetitionPenalty | None = None  # llama.cpp's name of repetition_penalty
    repeat_last_n: Annotated[int, Meta(ge=-1)] | None = None  # tokens that penalties cover
    logit_bias: LogitBias | None = None
    n_predict: MaxTokens | None = None  # llama.cpp's name of max_tokens
    min_tokens: Natural | None = None
    ignore_eos: bool | None = None
    stop: Stop | None = None
    stop_token_ids: Annotated[list[int], Meta(max_length=limits.STOP_TOKENS)] | None = None
    include_stop_str_in_output: bool | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    return_token_ids: bool | None = None
    cache_salt: Name | None = None
    service_tier: Name | None = None  # returned unchanged


class Function(Struct, kw_only=True):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct, kw_only=True):
    type: Literal["function"]
    function: Function


class NamedFunction(Struct, kw_only=True):
    name: Name


class ToolChoice(Struct, kw_only=True, tag_field="type", tag="function"):
    function: NamedFunction


def function_tool(
    name: str, description: str | None, parameters: dict[str, Any] | None, strict: bool | None
) -> Tool:
    """Return a function as a tool."""
    function = Function(name=name, description=description, parameters=parameters, strict=strict)
    return Tool(type="function", function=function)


def function_choice(name: str) -> ToolChoice:
    """Return the choice that requires a call of a function."""
    return ToolChoice(function=NamedFunction(name=name))


class AllowedTools(Struct, kw_only=True):
    mode: Literal["auto", "required"]
    tools: Annotated[list[ToolChoice], Meta(min_length=1, max_length=limits.TOOLS)]


class AllowedToolsChoice(Struct, kw_only=True, tag_field="type", tag="allowed_tools"):
    allowed_tools: AllowedTools


class ContentPart(Struct, kw_only=True):
    type: str
    text: str | None = None
    refusal: str | None = None  # of a part of that type: an earlier answer's

    @property
    def content(self) -> str:
        return (self.refusal if self.type == "refusal" else self.text) or ""


class FunctionCall(Struct, kw_only=True):
    name: Name
    arguments: str


class ToolCall(Struct, kw_only=True):
    function: FunctionCall
    id: Name | None = None
    type: Literal["function"] | None = None


class Message(Struct, kw_only=True):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[ContentPart], Meta(max_length=limits.PARTS)] | None = None
    refusal: str | None = None  # an earlier answer without content
    name: Name | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=limits.TOOLS)] | None = None
    tool_call_id: Name | None = None
    function_call: FunctionCall | None = None  # OpenAI's API before tools

    @property
    def text(self) -> str:
        """The content, or the refusal."""
        if isinstance(self.content, list):
            return "".join(part.content for part in self.content)
        return self.content or self.refusal or ""

    @property
    def calls(self) -> list[ToolCall]:
        """The calls of the assistant."""
        if self.tool_calls or self.function_call is None:
            return self.tool_calls or []
        return [ToolCall(function=self.function_call)]


Messages = Annotated[list[Message], Meta(min_length=1, max_length=limits.MESSAGES)]


def decode(body: bytes, kind: type[T]) -> T:
    """Return JSON as that type; APIError 400 that names the field if it is invalid."""
    with _naming_fields(kind):
        try:
            decoded = msgspec.json.decode(body, type=kind)
        except msgspec.ValidationError as error:
            if "got `float`" not in str(error):
                raise
            decoded = from_fields(msgspec.json.decode(body), kind)
        if (refused := getattr(kind, "refused", None)) is not None:
            check_refused(body, refused)
        return decoded


def from_fields(fields: Any, kind: type[T]) -> T:
    """Return decoded JSON as that type, as `decode` does; 10.0 is a valid integer."""
    with _naming_fields(kind):
        return msgspec.convert(_with_integers(fields), kind)


@contextlib.contextmanager
def _naming_fields(kind: type) -> Iterator[None]:
    """Raise APIError 400 that names the field for JSON that is not of that type."""
    try:
        yield
    except msgspec.ValidationError as error:
        field, message = wrong_field(error)
        field = getattr(kind, "names", OPENAI_NAMES).path(field)
        param, message = printable(field, 200) or None, printable(message, 300)
        raise APIError(400, f"{param}: {message}" if param else message, param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise APIError(400, f"the body is not valid JSON: {error}") from None


def _with_integers(value: Any) -> Any:
    """Return JSON with each number that is an integer as an int."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_with_integers(each) for each in value]
    if isinstance(value, dict):
        return {key: _with_integers(each) for key, each in value.items()}
    return value


def decode_query(query: Mapping[str, str], kind: type[T]) -> T:
    """Return the fields of a query as that type; APIError 400 that names the field if invalid."""
    with _naming_fields(kind):
        return msgspec.convert(query, kind, strict=False)


def to_template(messages: list[Message]) -> list[dict[str, Any]]:
    """Return messages in the form of chat templates: content is text, arguments are an object."""
    return [_to_template(message) for message in messages]


# Roles of OpenAI's API that chat templates do not know.
_ROLES = {"developer": "system", "function": "tool"}


def _to_template(message: Message) -> dict[str, Any]:
    role = _ROLES.get(message.role, message.role)
    result: dict[str, Any] = {"role": role, "content": message.text}
    if message.name is not None:
        result["name"] = message.name
    if message.tool_call_id is not None:
        result["tool_call_id"] = message.tool_call_id
    if message.calls:
        result["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.function.name,
                    "arguments": _parsed(call.function.arguments),
                },
            }
            for call in message.calls
        ]
    return result


def _parsed(arguments: str) -> Any:
    try:
        return msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):  # not JSON, or too deep
        return arguments
