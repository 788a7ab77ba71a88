"""POST responses, GET and DELETE responses/ID: OpenAI's Responses API.

A body is converted to a ChatRequest. The conversation before `previous_response_id` is stored in
the server's process: `recall` looks it up before a worker builds the response.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta, Struct

from yocobit.errors import shown
from yocobit.serving import limits
from yocobit.serving.api import chat
from yocobit.serving.api.call import Call, Events, Reply, ServerState
from yocobit.serving.api.chat import ChatRequest, PreparedChat
from yocobit.serving.api.constraints import JSONSchema, ResponseFormat
from yocobit.serving.api.generation import generate
from yocobit.serving.api.protocol import (
    AllowedTools,
    AllowedToolsChoice,
    Function,
    MaxTokens,
    Message,
    Name,
    NamedFunction,
    Sampling,
    Tool,
    ToolChoice,
)
from yocobit.serving.api.refused_fields import Refused, check_value
from yocobit.serving.api.response import Response
from yocobit.serving.api.response_items import (
    Item,
    Items,
    Output,
    append_messages,
    resolve,
    to_stored,
)
from yocobit.serving.api.response_store import Turn
from yocobit.serving.api.served_model import ServedModel
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
# Fields of chat completions in this API's terms, for errors.
_PARAMS = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "logprobs": "top_logprobs",
}


class FunctionTool(Struct, kw_only=True):
    """A tool; those that OpenAI's servers run have other types and are refused."""

    type: Name
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")] | None = None
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
        "background": Refused((False,)),
        "context_management": Refused(([],), "use truncation"),
        "conversation": Refused(remedy="use previous_response_id"),
        "max_tokens": Refused(remedy="use max_output_tokens"),
        "messages": Refused(remedy="use input"),
        "n": Refused((1,), "a response has one output"),
        "prompt": Refused(remedy="use instructions and input"),
        "response_format": Refused(remedy="use text.format"),
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


class Page(Struct, kw_only=True):
    """The query of input_items."""

    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: Name | None = None


class Retrieval(Struct, kw_only=True):
    """The query of a stored response."""

    stream: bool = False


@dataclasses.dataclass(frozen=True)
class Recalled:
    """Stored JSON that a request continues or refers to."""

    turns: tuple[tuple[bytes, bytes], ...] = ()  # input items and response of each
    responses: tuple[bytes, ...] = ()  # that have items which the input refers to

    @property
    def n_bytes(self) -> int:
        return sum(map(len, (*(each for turn in self.turns for each in turn), *self.responses)))


class _References(Struct, kw_only=True):
    """The part of a body that refers to stored responses."""

    previous_response_id: Name | None = None
    input: msgspec.Raw = msgspec.Raw(b"null")


class _Reference(Struct, kw_only=True):
    type: Any = None
    id: Any = None


def recall(state: ServerState, body: bytes, client: str) -> Recalled | None:
    """Return what a body continues or refers to; APIError 404 for what is not stored.

    An invalid body is reported when it is decoded as a whole.
    """
    if b"previous_response_id" not in body and b"item_reference" not in body:
        return None
    owner, turns, responses = _owner(state, client), list[Turn](), dict[str, Turn]()
    try:
        found = msgspec.json.decode(body, type=_References)
        references: list[_Reference] = []
        if bytes(found.input).lstrip()[:1] == b"[" and b"item_reference" in bytes(found.input):
            references = msgspec.json.decode(found.input, type=list[_Reference])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if found.previous_response_id is not None:
        turns = state.responses.get(
            owner, found.previous_response_id, "previous_response_id"
        ).conversation()
    for reference in references:
        if reference.type == "item_reference" and isinstance(reference.id, str):
            turn = state.responses.get_by_item(owner, reference.id, "input")
            responses[turn.id] = turn
    recalled = Recalled(
        tuple((turn.input, turn.response) for turn in turns),
        tuple(turn.response for turn in responses.values()),
    )
    if recalled.n_bytes > state.settings.max_body_bytes:
        raise APIError(
            413,
            f"the stored conversation has {recalled.n_bytes:,} bytes, but at most "
            f"{state.settings.max_body_bytes:,} are allowed; send the part that matters as input",
            param="previous_response_id",
        )
    return recalled


def is_heavy(body: ResponseRequest) -> bool:
    """Whether a schema must be compiled."""
    return body.format.type != "text" or body.tool_choice not in (None, "none", "auto")


def build(
    model: ServedModel, body: ResponseRequest, client: str, recalled: Recalled | None = None
) -> Response:
    """Return the response to generate for a body; APIError 400 if it is invalid."""
    _check_supported(body)
    recalled = recalled or Recalled()
    items: list[Item] = []
    if isinstance(body.input, str):
        items = [Item(role="user", content=body.input)]
    elif body.input is not None:
        items = body.input
    own = list(resolve(items, _referred(recalled)))
    messages: list[Message] = []
    if body.instructions is not None:
        messages.append(Message(role="system", content=body.instructions))
    for given, answer in recalled.turns:
        earlier = msgspec.json.decode(given, type=list[Item])
        earlier += msgspec.json.decode(answer, type=Output).output
        append_messages(messages, enumerate(earlier))
    append_messages(messages, own)
    if not own and not recalled.turns:
        raise APIError(400, "input is missing; give a text or a list of items", param="input")
    if len(messages) > limits.MESSAGES:
        raise APIError(
            400,
            f"the conversation has {len(messages)} messages, but at most {limits.MESSAGES} are "
            "allowed; send the part that matters as input",
            param="input",
        )
    try:
        prepared = _prepare(model, body, _chat_request(body, messages), client)
    except APIError as error:
        param = error.param and _PARAMS.get(error.param, error.param)
        raise APIError(
            error.status,
            str(error),
            param=param,
            code=error.code,
            retry_after=error.retry_after,
        ) from None
    stored = msgspec.json.encode(to_stored(item for _, item in own))
    return Response(model, prepared, bool(body.stream), _fields(model, body, prepared), stored)


async def create(call: Call) -> Reply | Events:
    """Generate a response, and store it unless the request declines."""
    response: Response = call.prepared
    previous_id, store = response.fields["previous_response_id"], call.state.responses
    owner = _owner(call.state, call.client)
    if response.fields["store"]:
        previous: Turn | None = None
        if previous_id is not None:
            previous = store.get(owner, previous_id, "previous_response_id")
            store.hold(previous)
            call.resources.callback(store.release, previous)

        def keep(found: dict[str, Any], item_ids: tuple[str, ...]) -> None:
            encoded = msgspec.json.encode(found)
            items = response.input_items
            store.add(Turn(owner, response.id, encoded, items, item_ids, previous))

        response.on_complete = keep
    return await generate(call)


async def retrieve(call: Call) -> Reply:
    if call.query.stream:
        raise APIError(400, "stored responses are not streamed; leave stream out", param="stream")
    return Reply(_stored(call).response)


async def delete(call: Call) -> Reply:
    turn = _stored(call)
    call.state.responses.delete(turn.owner, turn.id)
    return Reply({"id": turn.id, "object": "response", "deleted": True})


async def input_items(call: Call) -> Reply:
    """List what a response was generated from, a page at a time."""
    *earlier, last = _stored(call).conversation()
    page: Page = call.query
    found: list[dict[str, Any]] = []
    for turn in earlier:
        found += msgspec.json.decode(turn.input)
        found += msgspec.json.decode(turn.response)["output"]
    found += msgspec.json.decode(last.input)
    if page.order == "desc":
        found.reverse()
    if page.after is not None:
        ids = [item["id"] for item in found]
        if page.after not in ids:
            raise APIError(400, f"after: there is no item {shown(page.after)}", param="after")
        found = found[ids.index(page.after) + 1 :]
    data = found[: page.limit]
    return Reply(
        {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else "",
            "last_id": data[-1]["id"] if data else "",
            "has_more": len(found) > len(data),
        }
    )


def _stored(call: Call) -> Turn:
    return call.state.responses.get(_owner(call.state, call.client), call.path_params["id"])


def _owner(state: ServerState, client: str) -> str:
    """Return whose responses a client may use: without API keys, a client is an address."""
    return client if state.settings.api_keys else ""


def _check_supported(body: ResponseRequest) -> None:
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


def _referred(recalled: Recalled) -> Mapping[str, Item]:
    """Return the stored items that the input may refer to, by id."""
    return {
        item.id: item
        for response in recalled.responses
        for item in msgspec.json.decode(response, type=Output).output
        if item.id is not None
    }


def _chat_request(body: ResponseRequest, messages: list[Message]) -> ChatRequest:
    sampling = {name: getattr(body, name) for name in Sampling.__struct_fields__}
    sampling |= {"stream": None, "stream_options": None}
    response_format = ResponseFormat(type=body.format.type)
    if body.format.schema is not None:
        response_format.json_schema = JSONSchema(
            name=body.format.name, schema=body.format.schema, strict=body.format.strict
        )
    return ChatRequest(
        **sampling,
        messages=messages,
        max_completion_tokens=body.max_output_tokens,
        logprobs=body.has_logprobs,
        top_logprobs=body.top_logprobs,
        response_format=response_format,
        tools=[_tool(tool) for tool in body.tools or ()] or None,
        tool_choice=_chat_choice(body.tool_choice),
        reasoning_effort=body.effort,
        parallel_tool_calls=body.parallel_tool_calls,
    )


def _chat_choice(choice: Any) -> Any:
    if not isinstance(choice, ToolSelection):
        return choice
    if choice.type == "function":
        return _named(choice.name)
    named = [_named(tool.name) for tool in choice.tools or ()]
    allowed = AllowedTools(mode=choice.mode or "auto", tools=named)
    return AllowedToolsChoice(allowed_tools=allowed)


def _named(name: str | None) -> ToolChoice:
    return ToolChoice(function=NamedFunction(name=name or ""))


def _tool(tool: FunctionTool) -> Tool:
    function = Function(
        name=tool.name or "",
        description=tool.description,
        parameters=tool.parameters,
        strict=tool.strict,
    )
    return Tool(type="function", function=function)


def _prepare(
    model: ServedModel, body: ResponseRequest, request: ChatRequest, client: str
) -> PreparedChat:
    """Prepare a conversation, without its oldest turns if it is to be truncated."""
    if body.truncation == "auto":
        # A quarter of the context is left for the answer, unless its limit is given.
        n_answer = request.token_limit or -1
        if n_answer < 0:
            n_answer = model.settings.context // 4
        request = _truncated(model, request, model.settings.context - n_answer)
    return chat.prepare(model, request, client, is_clamped=True)


def _truncated(model: ServedModel, request: ChatRequest, n_tokens: int) -> ChatRequest:
    """Return a request without the fewest of its oldest turns that make the prompt fit.

    Instructions at the start stay, and the last turn does. A turn starts with the user's message:
    results of tools without their calls have no meaning.
    """
    messages = request.messages
    is_kept = [message.role in ("system", "developer") for message in messages]
    first = is_kept.index(False) if False in is_kept else 0
    starts = [first, *(i for i, m in enumerate(messages) if m.role == "user" and i > first)]

    def shortened(start: int) -> ChatRequest:
        kept = [*messages[:first], *messages[start:]]
        return msgspec.structs.replace(request, messages=kept)

    def fits(start: int) -> bool:
        try:
            return len(chat.prompt_tokens(model, shortened(start))) <= n_tokens
        except APIError as error:
            if error.code != "context_length_exceeded":
                raise
            return False

    found = min(bisect.bisect_left(starts, True, key=fits), len(starts) - 1)
    return shortened(starts[found])


def _fields(model: ServedModel, body: ResponseRequest, prepared: PreparedChat) -> dict[str, Any]:
    """Return what a response repeats of its request, with the defaults that applied."""
    sampling = prepared.request.sampling[0]
    return {
        "model": body.model or model.name,
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
        "text": _raw({"format": _without_none(body.format), "verbosity": "medium"}),
        "tool_choice": _raw(_choice(body.tool_choice)),
        "tools": _raw(body.tools or []),
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


def _raw(value: Any) -> msgspec.Raw:
    """Return a value as JSON; APIError 400 if it is nested too deep.

    What a request repeats is encoded where it is checked: its depth may be that of the decoder.
    """
    try:
        return msgspec.Raw(msgspec.json.encode(value))
    except RecursionError:
        raise APIError(400, "the request is nested too deep; flatten it") from None
