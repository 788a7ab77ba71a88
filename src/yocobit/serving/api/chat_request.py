"""ChatRequest, the body of chat/completions, to which the chats of all protocols are converted.

`prepare` checks one and returns what to generate. A protocol has a subclass with its own names of
the fields, which errors use.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from yocobit.config import ConfigError
from yocobit.serving import limits
from yocobit.serving.api import protocol, tools
from yocobit.serving.api.answer import Answer
from yocobit.serving.api.constraints import Constrained, Constraint, constrained, constraint_of
from yocobit.serving.api.field_names import OPENAI_NAMES, FieldNames
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
from yocobit.serving.api.tool_calls import ToolCallParser
from yocobit.serving.errors import APIError
from yocobit.serving.runtime.request import Request
from yocobit.serving.runtime.structured_output import CheckedGrammar


class ChatRequest(Constrained, kw_only=True):
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
    def max_calls(self) -> int:
        """The calls that an answer may have."""
        return 1 if self.parallel_tool_calls is False else limits.TOOLS

    @property
    def requires_call(self) -> bool:
        """Whether the answer must be a tool call."""
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
                own = self.names[name]
                raise APIError(400, f"{own} must be at least 1, or -1, but is 0", param=own)
            if limit is not None:
                return limit
        return None


@dataclasses.dataclass(frozen=True)
class PreparedChat:
    """A checked conversation of any protocol: what to generate and how to read it."""

    request: Request
    grammar: CheckedGrammar | None  # that the output follows
    tool_names: tuple[str, ...]
    max_calls: int  # of an answer

    def answers(self) -> list[Answer]:
        """Return an empty answer for each choice."""
        names = self.tool_names
        return [
            Answer(ToolCallParser(names, self.max_calls) if names else None)
            for _ in self.request.sampling
        ]


def prepare(
    model: ServedModel,
    body: ChatRequest,
    client: str,
    *,
    prompt: list[int] | None = None,
    is_clamped: bool = False,
) -> PreparedChat:
    """Check a conversation of any protocol; APIError 400, in its names, if it is invalid.

    `prompt` replaces the rendered messages. With `is_clamped`, an answer ends with the context, or
    with the most log-probabilities of a response, if that is sooner than the limit of tokens;
    otherwise such a limit is an error.
    """
    if body.functions or body.function_call not in (None, "none", "auto"):
        raise APIError(
            400, "functions and function_call are not supported; use tools", param="functions"
        )
    _check_allowed_tools(body)
    if body.top_logprobs and not body.logprobs:
        raise APIError(400, "top_logprobs requires logprobs to be true", param="top_logprobs")
    if prompt is None:
        prompt = prompt_tokens(model, body)
    prompt = model.truncate(body, prompt, body.token_limit)
    n_logprobs = (body.n or 1) * ((body.top_logprobs or 0) + 1) if body.logprobs else 0
    max_tokens = model.max_tokens(body.token_limit, len(prompt), n_logprobs)
    if is_clamped:
        max_tokens = min(max_tokens, model.max_tokens(-1, len(prompt), n_logprobs))
    request = Request(
        prompt=tuple(prompt),
        max_tokens=max_tokens,
        sampling=model.sampling(body),
        **model.end_conditions(body, max_tokens, model.engine.stop_strings),
        logit_bias=model.logit_bias(body),
        n_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        n_shared_tokens=n_shared_tokens(model, body, prompt),
        cache_salt=body.cache_salt or "",
        client=client,
        timeout_s=model.settings.timeout_s,
    )
    model.check(request, "messages", body.names)
    model.check_logprobs([request], body.names)
    grammar, (request,) = constrained(model, _constraint(body), body, [request])
    names = tuple(tool.function.name for tool in body.offered_tools)
    return PreparedChat(request, grammar, names, body.max_calls)


def _check_allowed_tools(body: ChatRequest) -> None:
    """APIError 400 if a tool that may be called is not offered."""
    if isinstance(body.tool_choice, AllowedToolsChoice):
        offered = {tool.function.name for tool in body.tools or ()}
        for tool in body.tool_choice.allowed_tools.tools:
            if (name := tool.function.name) not in offered:
                raise APIError(
                    400,
                    f"tool_choice allows the function {name!r}, which is not in tools",
                    param="tool_choice",
                )


def _constraint(body: ChatRequest) -> Constraint | None:
    """Return the constraint of a request's output: that of its fields, or of required calls."""
    constraint = constraint_of(body)
    if not body.requires_call:
        return constraint
    is_of_content = constraint is None or constraint.param == body.names["response_format"]
    if constraint is not None and not is_of_content:
        raise APIError(
            400,
            f"tool_choice and {constraint.param} both constrain the output; leave one out",
            param=constraint.param,
        )
    choice = body.tool_choice
    named = choice.function.name if isinstance(choice, ToolChoice) else None
    offered = [tool for tool in body.offered_tools if named in (None, tool.function.name)]
    if not offered:
        what = f"the function {named!r}" if named else "a function"
        raise APIError(
            400, f"tool_choice requires {what}, which is not in tools", param="tool_choice"
        )
    is_array_allowed = named is None and body.parallel_tool_calls is not False
    indices = [(body.tools or []).index(tool) for tool in offered]
    pointers = [body.names.tool_schema.format(i) for i in indices]
    return tools.constraint_of_calls(offered, pointers, is_array_allowed)


def prompt_tokens(model: ServedModel, body: ChatRequest) -> list[int]:
    """Return the prompt of a body as tokens; APIError 400 for invalid messages."""
    variables = template_variables(body)
    return render(model, body.messages, body.offered_tools, variables, body.names)


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
    names: FieldNames = OPENAI_NAMES,
) -> list[int]:
    """Return the prompt of a conversation as tokens; APIError 400 for invalid messages.

    `variables` are those of the chat template.
    """
    param = names["messages"]
    for i, message in enumerate(messages):
        has_content = message.content is not None or message.refusal is not None
        if not has_content and not (message.role == "assistant" and message.calls):
            raise APIError(
                400,
                f"{param}[{i}].content is missing; give a text",
                param=f"{param}[{i}].content",
            )
        for part in message.content if isinstance(message.content, list) else ():
            if part.type not in ("text", "refusal"):
                raise APIError(
                    400,
                    f"{param}[{i}].content: {part.type!r} parts are not supported, only text",
                    param=param,
                )
    model.prompts.check_length(sum(len(message.text) for message in messages), param)
    if offered_tools:
        variables = {**variables, "tools": tools.to_template(offered_tools)}
    try:
        template = model.engine.chat_template
        text = template.render(protocol.to_template(messages), **variables)
    except ConfigError as error:
        # The template's own message, without the path of its file.
        reason = str(error).replace(f"{model.engine.model.path}/", "")
        raise APIError(400, reason, param=param) from None
    return model.prompts.encode(text, param)


def n_shared_tokens(model: ServedModel, body: ChatRequest, prompt: list[int]) -> int:
    """Return how many tokens a prompt shares with other conversations; 0 if unknown.

    They have the same system message and tools, but another first message.
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
