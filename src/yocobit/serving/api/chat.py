"""POST chat/completions: a conversation in, the assistant's answer out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct

from yocobit.config import ConfigError
from yocobit.serving import limits
from yocobit.serving.api import protocol, tools
from yocobit.serving.api.answer import Answer, CallArguments, CallStart, Content, Delta, Done
from yocobit.serving.api.generation import Completion, check_stream_options
from yocobit.serving.api.protocol import (
    AllowedToolsChoice,
    MaxTokens,
    Name,
    Sampling,
    Tool,
    ToolChoice,
)
from yocobit.serving.api.refused_fields import Refused
from yocobit.serving.api.served_model import ServedModel
from yocobit.serving.errors import APIError
from yocobit.serving.runtime.request import Event, Finish, Logprob, Request, Token
from yocobit.serving.runtime.runtime import EventStream
from yocobit.serving.runtime.structured_output import Schema


class JSONSchema(Struct, kw_only=True):
    name: Name | None = None
    schema: dict[str, Any] | bool | None = None


class ResponseFormat(Struct, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None


class ChatRequest(Sampling, kw_only=True):
    """The body of chat/completions."""

    refused: ClassVar[Mapping[str, Refused]] = {
        **Sampling.refused,
        "add_special_tokens": Refused((False,), "the chat template writes them"),
        "best_of": Refused((1,), "request more choices with n"),
        "echo": Refused((False,), "prepend the message's text"),
    }

    messages: protocol.Messages
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=limits.LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Meta(max_length=limits.TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | AllowedToolsChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Any] | None = None  # rejected: OpenAI's API before tools
    function_call: Any = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Name | None = None  # a variable of the chat template

    @property
    def offered_tools(self) -> list[Tool]:
        """The tools that the model may call."""
        choice = self.tool_choice
        if choice == "none":
            return []
        if isinstance(choice, AllowedToolsChoice):
            allowed = {tool.function.name for tool in choice.allowed_tools.tools}
            return [tool for tool in self.tools or [] if tool.function.name in allowed]
        return self.tools or []

    @property
    def requires_call(self) -> bool:
        """Whether the answer has to be a tool call."""
        choice = self.tool_choice
        if isinstance(choice, AllowedToolsChoice):
            return choice.allowed_tools.mode == "required"
        return choice == "required" or isinstance(choice, ToolChoice)

    @property
    def token_limit(self) -> int | None:
        """The limit of generated tokens, under any of its names; APIError 400 if it is 0."""
        for name in ("max_completion_tokens", "max_tokens", "n_predict"):
            limit: int | None = getattr(self, name)
            if limit == 0:
                raise APIError(400, f"{name} must be at least 1, or -1, but is 0", param=name)
            if limit is not None:
                return limit
        return None


@dataclasses.dataclass(frozen=True)
class PreparedChat:
    """A checked conversation of any protocol: what to generate and how to read it."""

    request: Request
    schema: Schema | None  # that the output follows
    tool_names: tuple[str, ...]
    requires_call: bool

    def answers(self) -> list[Answer]:
        """Return an empty answer for each choice."""
        names, is_call = self.tool_names, self.requires_call
        return [
            Answer(tools.ToolCallParser(names, is_call) if names else None)
            for _ in self.request.sampling
        ]


def build(model: ServedModel, body: ChatRequest, client: str) -> ChatCompletion:
    """Return the response to generate for a body; APIError 400 if it is invalid."""
    check_stream_options(body)
    return ChatCompletion(model, body, prepare(model, body, client))


def prepare(
    model: ServedModel,
    body: ChatRequest,
    client: str,
    *,
    prompt: list[int] | None = None,
    is_clamped: bool = False,
) -> PreparedChat:
    """Check a conversation of any protocol; APIError 400, in chat's terms, if it is invalid.

    `prompt` replaces the rendered messages. With `is_clamped`, an answer ends with the context if
    that is sooner than the limit of tokens; otherwise such a limit is an error.
    """
    if body.functions or body.function_call not in (None, "none", "auto"):
        raise APIError(
            400, "functions and function_call are not supported; use tools", param="functions"
        )
    if body.top_logprobs and not body.logprobs:
        raise APIError(400, "top_logprobs requires logprobs to be true", param="top_logprobs")
    if prompt is None:
        prompt = prompt_tokens(model, body)
    prompt = model.truncate(body, prompt, body.token_limit)
    max_tokens = model.max_tokens(body.token_limit, len(prompt))
    if is_clamped:
        max_tokens = min(max_tokens, model.max_tokens(-1, len(prompt)))
    request = Request(
        prompt=tuple(prompt),
        max_tokens=max_tokens,
        sampling=model.sampling(body),
        **model.end_conditions(body, max_tokens, model.engine.stop_strings),
        logit_bias=model.logit_bias(body),
        n_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        n_shared_tokens=n_shared_tokens(model, body, prompt),
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
        for name in ("ignore_eos", "min_tokens"):
            if getattr(body, name):
                raise APIError(
                    400,
                    f"{name}: structured output ends when it is complete; leave {name} out",
                    param=name,
                )
        request = request.until_complete()
    names = tuple(tool.function.name for tool in body.offered_tools)
    return PreparedChat(request, schema, names, body.requires_call)


def is_heavy(body: ChatRequest) -> bool:
    """Whether a schema must be compiled."""
    has_schema = body.response_format is not None and body.response_format.type != "text"
    return has_schema or body.requires_call


class ChatCompletion(Completion):
    """The response of chat completions."""

    id_prefix = "chatcmpl"
    object_name = "chat.completion"
    chunk_object_name = "chat.completion.chunk"

    def __init__(self, model: ServedModel, body: ChatRequest, chat: PreparedChat) -> None:
        super().__init__(model, body, [chat.request], chat.schema)
        self._has_logprobs = bool(body.logprobs)
        self._answers = chat.answers()
        self._prompt = list(chat.request.prompt)
        # Of each choice: all tokens, or those that no chunk has.
        self._tokens: list[list[int]] = [[] for _ in self._answers]

    def add(self, index: int, event: Event) -> None:
        if isinstance(event, Token | Finish):
            self._answers[event.choice].add(event)
            self._add_token(event)

    def whole(self, stream: EventStream) -> dict[str, Any]:
        return {**super().whole(stream), **self._prompt_ids()}

    def choices(self) -> list[dict[str, Any]]:
        return [self._choice(i, answer) for i, answer in enumerate(self._answers)]

    def first_chunks(self) -> Iterator[dict[str, Any]]:
        for i in range(len(self._answers)):
            delta = _delta(i, {"role": "assistant", "content": ""})
            chunk = self.chunk(delta, is_first=i == 0)
            yield {**chunk, **self._prompt_ids()} if i == 0 else chunk

    def chunks_of(self, index: int, event: Event, stream: EventStream) -> Iterator[dict[str, Any]]:
        if not isinstance(event, Token | Finish):
            return
        deltas = self._answers[event.choice].add(event)
        self._add_token(event)
        for delta in deltas:
            if isinstance(delta, Content):
                logprobs = self._logprobs(delta.logprobs) if delta.logprobs else None
                content = _delta(event.choice, {"content": delta.text}, logprobs=logprobs)
                yield self.chunk({**content, **self._token_ids(event.choice)})
        for call in _call_deltas(deltas):
            calls = _delta(event.choice, {"tool_calls": [call]})
            yield self.chunk({**calls, **self._token_ids(event.choice)})
        for delta in deltas:
            if isinstance(delta, Done):
                last = _delta(event.choice, {}, finish_reason=delta.reason)
                last |= self._token_ids(event.choice)
                yield self.chunk(last, self.finish_choice(stream))

    def _add_token(self, event: Token | Finish) -> None:
        if self.has_token_ids and isinstance(event, Token):
            self._tokens[event.choice].append(event.token)

    def _token_ids(self, index: int) -> dict[str, Any]:
        """Return the tokens of a choice since the last call."""
        if not self.has_token_ids:
            return {}
        tokens, self._tokens[index] = self._tokens[index], []
        return {"token_ids": tokens}

    def _prompt_ids(self) -> dict[str, Any]:
        return {"prompt_token_ids": self._prompt} if self.has_token_ids else {}

    def _logprobs(self, found: Iterable[Logprob]) -> dict[str, Any]:
        return {"content": [self.logprob(each) for each in found], "refusal": None}

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": answer.text,
            "refusal": None,
            "annotations": [],
        }
        if answer.calls:
            message["content"] = answer.text or None
            message["tool_calls"] = [_call(c.id, c.name, c.arguments) for c in answer.calls]
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(answer.logprobs) if self._has_logprobs else None,
            "finish_reason": answer.done and answer.done.reason,
            **self._token_ids(index),
        }


def prompt_tokens(model: ServedModel, body: ChatRequest) -> list[int]:
    """Return the prompt of a body as tokens; APIError 400 for invalid messages."""
    return render(model, body.messages, body.offered_tools, template_variables(body))


# Variables that a request sets by fields of their own.
_OWN_VARIABLES = ("messages", "tools", "add_generation_prompt", "continue_final_message")


def template_variables(body: ChatRequest) -> dict[str, Any]:
    """Return the variables of the chat template; APIError 400 if they are invalid."""
    variables = dict(body.chat_template_kwargs or {})
    for name in _OWN_VARIABLES:
        if name in variables:
            raise APIError(
                400,
                f"chat_template_kwargs: {name!r} is not allowed; it is a field of the request",
                param="chat_template_kwargs",
            )
    if body.reasoning_effort is not None:  # as in vLLM
        variables.setdefault("enable_thinking", body.reasoning_effort != "none")
        variables["reasoning_effort"] = body.reasoning_effort
    if body.continue_final_message:
        if body.add_generation_prompt:
            raise APIError(
                400,
                "continue_final_message and add_generation_prompt exclude each other; set one",
                param="continue_final_message",
            )
        variables["continue_final_message"] = True
    elif body.add_generation_prompt is not None:
        variables["add_generation_prompt"] = body.add_generation_prompt
    return variables


def render(
    model: ServedModel,
    messages: list[protocol.Message],
    offered_tools: list[Tool],
    variables: Mapping[str, Any] = {},
) -> list[int]:
    """Return the prompt of a conversation as tokens; APIError 400 for invalid messages.

    `variables` are those of the chat template.
    """
    for i, message in enumerate(messages):
        has_content = message.content is not None or message.refusal is not None
        if not has_content and not (message.role == "assistant" and message.calls):
            raise APIError(
                400,
                f"messages[{i}].content is missing; give a text",
                param=f"messages[{i}].content",
            )
        for part in message.content if isinstance(message.content, list) else ():
            if part.type not in ("text", "refusal"):
                raise APIError(
                    400,
                    f"messages[{i}].content: {part.type!r} parts are not supported, only text",
                    param="messages",
                )
    model.check_length(sum(map(protocol.length, messages)), "messages")
    if offered_tools:
        variables = {**variables, "tools": tools.to_template(offered_tools)}
    try:
        template = model.engine.chat_template
        text = template.render(protocol.to_template(messages), **variables)
    except ConfigError as error:
        # The template's own message, without the path of its file.
        reason = str(error).replace(f"{model.engine.model.path}/", "")
        raise APIError(400, reason, param="messages") from None
    return model.encode(text, "messages")


def n_shared_tokens(model: ServedModel, body: ChatRequest, prompt: list[int]) -> int:
    """Return how many tokens of a prompt it shares with other conversations; 0 if unknown.

    These have the same system message and tools, and another first message.
    """
    system = list(itertools.takewhile(lambda m: m.role in ("system", "developer"), body.messages))
    if model.settings.prefix_mb == 0 or not (system or body.offered_tools):
        return 0
    first = protocol.to_template(body.messages[len(system) :][:1] or system)[0]["content"]
    other = protocol.Message(role="user", content="1" if first.startswith("0") else "0")
    variables = template_variables(body)
    variables.pop("continue_final_message", None)
    try:
        tokens = render(model, [*system, other], body.offered_tools, variables)
    except APIError:  # the template requires other messages
        return 0
    pairs = zip(prompt[:-1], tokens, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), 0)


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


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def _call_deltas(deltas: Sequence[Delta]) -> list[dict[str, Any]]:
    """Return the calls among deltas as entries of tool_calls; parts of one call are joined."""
    entries: list[dict[str, Any]] = []
    for delta in deltas:
        if isinstance(delta, CallStart):
            entries.append({"index": delta.index, **_call(delta.id, delta.name, "")})
        elif isinstance(delta, CallArguments):
            if not entries or entries[-1]["index"] != delta.index:
                entries.append({"index": delta.index, "function": {"arguments": ""}})
            entries[-1]["function"]["arguments"] += delta.text
    return entries
