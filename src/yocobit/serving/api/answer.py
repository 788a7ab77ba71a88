"""Answer: what the generated text of a chat choice means, independent of the protocol.

Events of the runtime go in, deltas come out. A protocol renders deltas; a response that is not
streamed is rendered from what the answer has accumulated.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any, Literal

import msgspec

from yocobit.serving.api.tool_calls import CallArguments as CallArguments
from yocobit.serving.api.tool_calls import CallStart as CallStart
from yocobit.serving.api.tool_calls import Piece, ToolCallParser
from yocobit.serving.runtime.request import Event, Finish, Logprob, Token

Reason = Literal["stop", "length", "tool_calls"]


@dataclasses.dataclass(frozen=True)
class Content:
    """Text of the answer, and the log-probabilities of its tokens if they were requested.

    The texts of all log-probabilities join to the text, unless it has tool calls.
    """

    text: str
    logprobs: tuple[Logprob, ...] = ()


@dataclasses.dataclass(frozen=True)
class Done:
    """The end of the answer."""

    reason: Reason
    matched_stop: str | None = None  # the stop string


Delta = Content | CallStart | CallArguments | Done


@dataclasses.dataclass
class GeneratedCall:
    """A tool call of the answer; `arguments` are JSON once it is complete."""

    id: str
    name: str
    arguments: str = ""

    @property
    def decoded_arguments(self) -> Any:
        """The arguments as an object, which is empty if the answer was cut within them."""
        try:
            return msgspec.json.decode(self.arguments)
        except (msgspec.DecodeError, RecursionError):
            return {}


class Answer:
    """The part of a choice that has been generated."""

    def __init__(self, parser: ToolCallParser | None = None) -> None:
        """`parser` recognises tool calls; None if no tools were offered."""
        self._parser = parser
        self.text = ""
        self.calls: list[GeneratedCall] = []
        self.logprobs: list[Logprob] = []
        self._held: deque[Logprob] = deque()  # of tokens whose text may not be certain
        self._n_certain = 0  # characters of the text after the log-probabilities that were returned
        self.done: Done | None = None

    def add(self, event: Event) -> list[Delta]:
        """Append an event of this choice; return the deltas that become certain with it."""
        if not isinstance(event, Token | Finish):
            return []
        pieces = self._parse(event.text, is_last=isinstance(event, Finish))
        content = "".join(piece for piece in pieces if isinstance(piece, str))
        logprobs = self._certain_logprobs(event)
        deltas: list[Delta] = []
        if content or logprobs:
            deltas.append(Content(content, tuple(logprobs)))
        for piece in pieces:
            if isinstance(piece, CallStart):
                self.calls.append(GeneratedCall(piece.id, piece.name))
            elif isinstance(piece, CallArguments):
                self.calls[piece.index].arguments += piece.text
            if not isinstance(piece, str):
                deltas.append(piece)
        self.text += content
        self.logprobs += logprobs
        if isinstance(event, Finish):
            self.done = Done(self._reason(event), event.matched_stop)
            deltas.append(self.done)
        return deltas

    def _certain_logprobs(self, event: Token | Finish) -> list[Logprob]:
        """Return the log-probabilities of the tokens whose text became certain.

        Their texts join to the text of the events: a stop string cuts the last one.
        """
        if isinstance(event, Token) and event.logprob is not None:
            self._held.append(event.logprob)
        is_last = isinstance(event, Finish)
        if isinstance(event, Finish) and event.rest and self._held:
            open_token = self._held.pop()
            text = open_token.text + event.rest
            self._held.append(dataclasses.replace(open_token, text=text))
        self._n_certain += len(event.text)
        certain = []
        while self._held and len(self._held[0].text) <= self._n_certain:
            if len(self._held) == 1 and self._held[0].is_open and not is_last:
                break
            certain.append(self._held.popleft())
            self._n_certain -= len(certain[-1].text)
        if is_last and self._held and self._n_certain > 0:
            cut = self._held[0].text[: self._n_certain]
            certain.append(dataclasses.replace(self._held[0], text=cut))
        return certain

    def _parse(self, text: str, is_last: bool) -> list[Piece]:
        """Return what became certain with a text: content, and parts of calls."""
        if self._parser is None:
            return [text]
        return self._parser.add(text) + (self._parser.finish() if is_last else [])

    def _reason(self, event: Finish) -> Reason:
        """Return "tool_calls" if the answer has calls and the last one is complete."""
        is_called = self.calls and not (self._parser and self._parser.is_truncated)
        return "tool_calls" if is_called else event.reason
