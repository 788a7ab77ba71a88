"""chat/completions: a conversation in, the assistant's answer out."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Iterator
from typing import Any

from yocobit.config import ConfigError
from yocobit.serving import protocol, tools
from yocobit.serving.completion import Completion, stops
from yocobit.serving.errors import APIError
from yocobit.serving.generation import Constraint, Event, Finish, Request, Token
from yocobit.serving.protocol import ChatRequest, ToolChoice
from yocobit.serving.service import Answer, Service


@dataclasses.dataclass
class _Choice:
    """An answer as it grows."""

    reader: tools.ToolCallReader | None
    text: str = ""
    calls: list[tools.Call] = dataclasses.field(default_factory=list)
    logprobs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    reason: str | None = None

    def add(self, text: str, is_last: bool) -> tuple[str, list[tools.Call]]:
        """Take in text; return what can be shown of it, and the calls that it completes."""
        shown, calls = text, list[tools.Call]()
        if self.reader is not None:
            shown, calls = self.reader.add(text)
            if is_last:
                rest, more = self.reader.finish()
                shown, calls = shown + rest, calls + more
        self.text += shown
        self.calls += calls
        return shown, calls


class ChatCompletion(Completion):
    """One request to chat/completions."""

    kind = "chatcmpl"
    chunk_object = "chat.completion.chunk"

    def __init__(self, service: Service, body: ChatRequest, client: str) -> None:
        super().__init__(service, body)
        self._tools = [] if body.tool_choice == "none" else body.tools or []
        self._has_logprobs = bool(body.logprobs)
        if body.functions or body.function_call not in (None, "none", "auto"):
            raise APIError(
                400, "functions and function_call are not offered; use tools", param="functions"
            )
        if body.top_logprobs and not body.logprobs:
            raise APIError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
        prompt = render(service, body.messages, self._tools)
        room = service.settings.context - len(prompt)
        asked = body.max_completion_tokens or body.max_tokens
        max_tokens = max(1, room) if asked is None else asked
        request = Request(
            prompt=tuple(prompt),
            max_tokens=max_tokens,
            sampling=service.sampling(body),
            stop=(*stops(body.stop), *service.engine.stop_strings),
            logit_bias=service.logit_bias(body),
            n_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            client=client,
            timeout_s=service.settings.timeout_s,
        )
        service.check(request, param="messages")
        if constraint := self._constraint(body, max_tokens):
            if body.stop:
                field = "tool_choice" if _must_call(body) else "response_format"
                raise APIError(
                    400,
                    f"stop could cut the JSON that {field} asks for; leave one of the two out",
                    param="stop",
                )
            # JSON may hold what ends the model's turn elsewhere.
            request = dataclasses.replace(request, constraint=constraint, stop=())
        self.requests = [request]
        names = [tool.function.name for tool in self._tools]
        self._choices = [
            _Choice(tools.ToolCallReader(names, _must_call(body)) if names else None)
            for _ in request.sampling
        ]
        self._n_open = len(self._choices)

    async def whole(self, answer: Answer) -> dict[str, Any]:
        async for events in answer.events():
            for _, event in events:
                if isinstance(event, Token):
                    choice = self._choices[event.choice]
                    choice.add(event.text, is_last=False)
                    if event.logprob is not None:
                        choice.logprobs.append(self.chosen(event.logprob))
                elif isinstance(event, Finish):
                    choice = self._choices[event.choice]
                    choice.add(event.text, is_last=True)
                    choice.reason = event.reason
        results = [self._result(i, choice) for i, choice in enumerate(self._choices)]
        return self.whole_frame("chat.completion", results, answer)

    def first_chunks(self) -> Iterator[dict[str, Any]]:
        for i in range(len(self._choices)):
            yield self._chunk(i, {"role": "assistant", "content": ""}, is_first=i == 0)

    def chunks_of(self, index: int, event: Event, answer: Answer) -> Iterator[dict[str, Any]]:
        if not isinstance(event, Token | Finish):
            return
        choice, is_last = self._choices[event.choice], isinstance(event, Finish)
        first_call = len(choice.calls)
        shown, calls = choice.add(event.text, is_last)
        logprobs = None
        if isinstance(event, Token) and event.logprob is not None:
            logprobs = {"content": [self.chosen(event.logprob)], "refusal": None}
        if shown or logprobs:
            yield self._chunk(event.choice, {"content": shown}, logprobs=logprobs)
        for i, call in enumerate(calls, first_call):
            delta = {"tool_calls": [{"index": i, **_call(call)}]}
            yield self._chunk(event.choice, delta)
        if isinstance(event, Finish):
            self._n_open -= 1
            reason = "tool_calls" if choice.calls else event.reason
            ended = None if self._n_open else answer
            yield self._chunk(event.choice, {}, finish_reason=reason, ended=ended)

    def _result(self, index: int, choice: _Choice) -> dict[str, Any]:
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

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
        is_first: bool = False,
        ended: Answer | None = None,
    ) -> dict[str, Any]:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        return self.chunk_frame([choice], ended, is_first=is_first)

    def _constraint(self, body: ChatRequest, max_tokens: int) -> Callable[[], Constraint] | None:
        """Return what makes the constraint that a request asks for, if it asks for one."""
        choice, grammars = body.tool_choice, self.service.grammars
        if _must_call(body):
            named = choice.function.name if isinstance(choice, ToolChoice) else None
            wanted = [t for t in self._tools if named is None or t.function.name == named]
            if not wanted:
                what = f"the function {named!r}" if named else "a function"
                raise APIError(
                    400, f"tool_choice asks for {what}, which is not in tools", param="tool_choice"
                )
            return grammars.follow(tools.schema_of_calls(wanted), "tools", max_tokens)
        form = body.response_format
        if form is None or form.type == "text":
            return None
        if form.type == "json_object":
            return grammars.follow({"type": "object"}, "response_format", max_tokens)
        if form.json_schema is None or form.json_schema.schema is None:
            raise APIError(
                400,
                "response_format: json_schema.schema is missing",
                param="response_format",
            )
        return grammars.follow(form.json_schema.schema, "response_format", max_tokens)


def _must_call(body: ChatRequest) -> bool:
    """Whether the answer has to be a call of a tool."""
    return body.tool_choice == "required" or isinstance(body.tool_choice, ToolChoice)


def render(
    service: Service, messages: list[protocol.Message], tool_list: list[protocol.Tool]
) -> list[int]:
    """Return the prompt of a conversation; APIError 400 for messages that cannot be one."""
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
                    f"messages[{i}].content: {part.type!r} parts are not understood, only text",
                    param="messages",
                )
    variables = {"tools": tools.to_template(tool_list)} if tool_list else {}
    try:
        template = service.engine.chat_template
        text = template.render(protocol.to_template(messages), **variables)
    except ConfigError as error:
        # What a template says of messages, without where it lies.
        what = str(error).replace(f"{service.engine.model.path}/", "")
        raise APIError(400, what, param="messages") from None
    return service.encode(text, "messages")


def _call(call: tools.Call) -> dict[str, Any]:
    return {
        "id": f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
