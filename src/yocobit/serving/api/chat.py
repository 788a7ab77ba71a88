"""POST chat/completions: a conversation in, the assistant's answer out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from yocobit.serving.api.answer import Answer, CallArguments, CallStart, Content, Delta, Done
from yocobit.serving.api.chat_request import ChatRequest, PreparedChat, prepare
from yocobit.serving.api.generated_response import Completion, check_stream_options
from yocobit.serving.api.served_model import ServedModel
from yocobit.serving.runtime.request import Event, Finish, Logprob, Token
from yocobit.serving.runtime.runtime import EventStream


def build(model: ServedModel, body: ChatRequest, client: str) -> ChatCompletion:
    """Return the response to generate for a body; APIError 400 if it is invalid."""
    check_stream_options(body)
    return ChatCompletion(model, body, prepare(model, body, client))


def is_heavy(body: ChatRequest) -> bool:
    """Whether a grammar must be compiled."""
    return body.is_constrained or body.requires_call


class ChatCompletion(Completion):
    """The response of chat completions."""

    id_prefix = "chatcmpl"
    object_name = "chat.completion"
    chunk_object_name = "chat.completion.chunk"

    def __init__(self, model: ServedModel, body: ChatRequest, chat: PreparedChat) -> None:
        super().__init__(model, body, [chat.request], chat.grammar)
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
