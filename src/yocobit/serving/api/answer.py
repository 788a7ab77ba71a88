"""Answer: what the generated text of a chat choice means, independent of the protocol.

Events of the runtime go in, deltas come out. A protocol renders deltas; a response that is not
streamed is rendered from what the answer has accumulated.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from yocobit.serving.api.tools import CallArguments as CallArguments
from yocobit.serving.api.tools import CallStart as CallStart
from yocobit.serving.api.tools import Piece, ToolCallParser
from yocobit.serving.runtime.request import Event, Finish, Logprob, Token

Reason = Literal["stop", "length", "tool_calls"]


@dataclasses.dataclass(frozen=True)
class Content:
    """Text of the answer, and the log-probabilities of its tokens if they were requested."""

    text: str
    logprobs: tuple[Logprob, ...] = ()


@dataclasses.dataclass(frozen=True)
class Done:
    """The end of the answer."""

    reason: Reason
    matched_stop: str | None = None  # the stop string


Delta = Content | CallStart | CallArguments | Done


@dataclasses.dataclass
class Call:
    """A tool call; `arguments` are JSON once the answer is complete."""

    id: str
    name: str
    arguments: str = ""


class Answer:
    """The part of a choice that has been generated."""

    def __init__(self, parser: ToolCallParser | None = None) -> None:
        """`parser` recognises tool calls; None if no tools were offered."""
        self._parser = parser
        self.text = ""
        self.calls: list[Call] = []
        self.logprobs: list[Logprob] = []
        self.done: Done | None = None

    def add(self, event: Event) -> list[Delta]:
        """Append an event of this choice; return the deltas that become certain with it."""
        if not isinstance(event, Token | Finish):
            return []
        pieces = self._parse(event.text, is_last=isinstance(event, Finish))
        content = "".join(piece for piece in pieces if isinstance(piece, str))
        logprob = event.logprob if isinstance(event, Token) else None
        deltas: list[Delta] = []
        if content or logprob is not None:
            deltas.append(Content(content, () if logprob is None else (logprob,)))
        for piece in pieces:
            if isinstance(piece, CallStart):
                self.calls.append(Call(piece.id, piece.name))
            elif isinstance(piece, CallArguments):
                self.calls[piece.index].arguments += piece.text
            if not isinstance(piece, str):
                deltas.append(piece)
        self.text += content
        if logprob is not None:
            self.logprobs.append(logprob)
        if isinstance(event, Finish):
            self.done = Done(self._reason(event), event.matched_stop)
            deltas.append(self.done)
        return deltas

    def _parse(self, text: str, is_last: bool) -> list[Piece]:
        """Return what became certain with a text: content, and parts of calls."""
        if self._parser is None:
            return [text]
        return self._parser.add(text) + (self._parser.finish() if is_last else [])

    def _reason(self, event: Finish) -> Reason:
        """Return "tool_calls" if the answer has calls and the last one is complete."""
        is_called = self.calls and not (self._parser and self._parser.is_truncated)
        return "tool_calls" if is_called else event.reason
