"""The body of responses: schema, conversion to a ChatRequest, fields that a response repeats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta, Struct

from yocobit.engine import SamplingConfig
from yocobit.errors import shown
from yocobit.serving import limits
from yocobit.serving.api.chat_request import ChatRequest
from yocobit.serving.api.constraints import JSONSchema, ResponseFormat
from yocobit.serving.api.field_names import FieldNames
from yocobit.serving.api.protocol import (
    AllowedTools,
    AllowedToolsChoice,
    FunctionName,
    MaxTokens,
    Message,
    Name,
    Sampling,
    function_choice,
    function_tool,
)
from yocobit.serving.api.refused_fields import Refused, check_value, refused_chat_fields
from yocobit.serving.api.response_items import Items
from yocobit.serving.errors import APIError

_INCLUDABLE = {
    "message.output_text.logprobs",
    # Of items that no response here has.
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "message.input_image.image_url",
}


class FunctionTool(Struct, kw_only=True):
    """A tool; those that OpenAI's servers run have other types and are refused."""

    type: Name
    name: FunctionName | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedTool(Struct, kw_only=True):
    type: Name
    name: Name | None = None


Tools = Annotated[list[FunctionTool], Meta(max_length=limits.TOOLS)]


class ToolSelection(Struct, kw_only=True):
    """A function that has to be called, or the tools that may be called."""

    type: Name
    name: Name | None = None  # of type function
    mode: Literal["auto", "required"] | None = None  # of type allowed_tools
    tools: Annotated[list[NamedTool], Meta(max_length=limits.TOOLS)] | None = None


class TextFormat(Struct, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextOptions(Struct, kw_only=True):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Struct, kw_only=True):
    effort: Name | None = None  # a variable of the chat template


Key = Annotated[str, Meta(max_length=64)]
Metadata = Annotated[dict[Key, Annotated[str, Meta(max_length=512)]], Meta(max_length=16)]


class ResponseRequest(Sampling, kw_only=True):
    """The body of responses."""

    refused: ClassVar[Mapping[str, Refused]] = {
        **Sampling.refused,
        **refused_chat_fields("use text.format"),
        "background": Refused((False,)),
        "context_management": Refused(([],), "use truncation"),
        "conversation": Refused(remedy="use previous_response_id"),
        "logprobs": Refused((False,), "use include, or top_logprobs"),
        "max_completion_tokens": Refused(remedy="use max_output_tokens"),
        "max_tokens": Refused(remedy="use max_output_tokens"),
        "messages": Refused(remedy="use input"),
        "n": Refused((1,), "a response has one output"),
        "prompt": Refused(remedy="use instructions and input"),
        "return_token_ids": Refused((False,)),
    }

    input: str | Items | None = None
    instructions: str | None = None
    previous_response_id: Name | None = None
    store: bool | None = None
    max_output_tokens: MaxTokens | None = None
    text: TextOptions | None = None
    tools: Tools | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolSelection | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = None  # of tools that OpenAI's servers run
    include: Annotated[list[Name], Meta(max_length=64)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=limits.LOGPROBS)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: Metadata | None = None
    reasoning: Reasoning | None = None
    user: Name | None = None
    safety_identifier: Name | None = None
    prompt_cache_key: Name | None = None

    @property
    def has_logprobs(self) -> bool:
        return bool(self.top_logprobs) or "message.output_text.logprobs" in (self.include or ())

    @property
    def effort(self) -> str | None:
        return None if self.reasoning is None else self.reasoning.effort

    @property
    def format(self) -> TextFormat:
        given = None if self.text is None else self.text.format
        return given or TextFormat(type="text")


def check_supported(body: ResponseRequest) -> None:
    """APIError 400 if a body has a field with a value that is not supported."""
    if body.text is not None:
        check_value("text.verbosity", body.text.verbosity, Refused(("medium",)))
    for value in body.include or ():
        if value not in _INCLUDABLE:
            raise APIError(
                400,
                f"include: {shown(value, 100)} is unknown; it must be one of "
                f"{', '.join(sorted(_INCLUDABLE))}",
                param="include",
            )
    for i, tool in enumerate(body.tools or ()):
        if tool.type != "function":
            raise APIError(
                400,
                f"tools[{i}]: {shown(tool.type, 100)} runs on OpenAI's servers and is not "
                "supported; offer a function",
                param="tools",
            )
        if tool.name is None:
            raise APIError(400, f"tools[{i}].name is missing", param="tools")
    choice = body.tool_choice
    if isinstance(choice, ToolSelection) and choice.type not in ("function", "allowed_tools"):
        raise APIError(
            400,
            f"tool_choice: {shown(choice.type, 100)} is not supported, only function and "
            "allowed_tools",
            param="tool_choice",
        )
    if body.format.type == "json_schema" and body.format.schema is None:
        raise APIError(400, "text.format.schema is missing", param="text.format.schema")


class ResponsesChat(ChatRequest, kw_only=True):
    """A conversation with the names of the Responses API."""

    names: ClassVar[FieldNames] = FieldNames(
        {
            "messages": "input",
            "max_tokens": "max_output_tokens",
            "max_completion_tokens": "max_output_tokens",
            "response_format": "text.format",
            "logprobs": "top_logprobs",
        },
        response_schema="/text/format/schema",
        tool_schema="/tools/{}/parameters",
    )


def chat_request(body: ResponseRequest, messages: list[Message]) -> ResponsesChat:
    """Return a body as one of chat completions, with its conversation as messages."""
    sampling = {name: getattr(body, name) for name in Sampling.__struct_fields__}
    sampling |= {"stream": None, "stream_options": None}
    response_format = ResponseFormat(type=body.format.type)
    if body.format.schema is not None:
        response_format.json_schema = JSONSchema(
            name=body.format.name, schema=body.format.schema, strict=body.format.strict
        )
    return ResponsesChat(
        **sampling,
        messages=messages,
        # OpenAI and vLLM: without a limit, the answer may fill the context.
        max_completion_tokens=-1 if body.max_output_tokens is None else body.max_output_tokens,
        logprobs=body.has_logprobs,
        top_logprobs=body.top_logprobs,
        response_format=response_format,
        tools=[
            function_tool(tool.name or "", tool.description, tool.parameters, tool.strict)
            for tool in body.tools or ()
        ]
        or None,
        tool_choice=_chat_choice(body.tool_choice),
        reasoning_effort=body.effort,
        parallel_tool_calls=body.parallel_tool_calls,
    )


def _chat_choice(choice: Any) -> Any:
    if not isinstance(choice, ToolSelection):
        return choice
    if choice.type == "function":
        return function_choice(choice.name or "")
    named = [function_choice(tool.name or "") for tool in choice.tools or ()]
    allowed = AllowedTools(mode=choice.mode or "auto", tools=named)
    return AllowedToolsChoice(allowed_tools=allowed)


def repeated_fields(
    body: ResponseRequest, model_name: str, sampling: SamplingConfig
) -> dict[str, Any]:
    """Return the fields of a request that its response repeats, with their defaults.

    APIError 400 for a field that is too large or too deep to be repeated.
    """
    text = {"format": _without_none(body.format), "verbosity": "medium"}
    return {
        "model": body.model or model_name,
        "instructions": body.instructions,
        "previous_response_id": body.previous_response_id,
        "store": body.store is not False,
        "background": False,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": body.effort, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": body.service_tier or "default",
        "temperature": sampling.temperature,
        "text": _raw(text, "text.format"),
        "tool_choice": _raw(_choice(body.tool_choice), "tool_choice"),
        "tools": _raw(body.tools or [], "tools"),
        "top_logprobs": body.top_logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": body.truncation or "disabled",
        "user": body.user,
    }


def _choice(choice: Any) -> Any:
    if isinstance(choice, ToolSelection):
        found = _without_none(choice)
        if choice.tools is not None:
            found["tools"] = [_without_none(tool) for tool in choice.tools]
        return found
    return choice or "auto"


def _without_none(struct: Struct) -> dict[str, Any]:
    """Return the fields of a struct that are not None."""
    return {k: value for k, value in msgspec.structs.asdict(struct).items() if value is not None}


def _raw(value: Any, param: str) -> msgspec.Raw:
    """Return a value of the request as JSON; APIError 400 if it is too large or too deep.

    It is encoded here, since its depth may be the decoder's limit.
    """
    try:
        encoded = msgspec.json.encode(value)
    except RecursionError:
        raise APIError(400, f"{param} is nested too deep; flatten it", param=param) from None
    if len(encoded) > limits.REPEATED_BYTES:
        raise APIError(
            400,
            f"{param} must have at most {limits.REPEATED_BYTES:,} bytes but has {len(encoded):,}; "
            "shorten it",
            param=param,
        )
    return msgspec.Raw(encoded)
