"""Answer: what the generated text of a chat choice means, independent of the protocol.

Events of the runtime go in, deltas come out. A protocol renders deltas; a response that is not
streamed is rendered from what the answer has accumulated.
"""

from __future__ import annotations

import dataclasses
import secrets
from typing import Literal

from yocobit.serving.api import tools
from yocobit.serving.runtime.request import Event, Finish, Logprob, Token

Reason = Literal["stop", "length", "tool_calls"]


@dataclasses.dataclass(frozen=True)
class Content:
    """Text of the answer, and the log-probabilities of its tokens if they were requested."""

    text: str
    logprobs: tuple[Logprob, ...] = ()


@dataclasses.dataclass(frozen=True)
class CallStart:
    """The start of the tool call with that index."""

    index: int
    id: str
    name: str


@dataclasses.dataclass(frozen=True)
class CallArguments:
    """A part of the arguments of the tool call with that index; all parts together are JSON."""

    index: int
    text: str


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

    def __init__(self, parser: tools.ToolCallParser | None = None) -> None:
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
        content, calls = self._parse(event.text, is_last=isinstance(event, Finish))
        logprob = event.logprob if isinstance(event, Token) else None
        deltas: list[Delta] = []
        if content or logprob is not None:
            deltas.append(Content(content, () if logprob is None else (logprob,)))
        for call in calls:
            index, new_id = len(self.calls), f"call_{secrets.token_hex(12)}"
            deltas += [CallStart(index, new_id, call.name), CallArguments(index, call.arguments)]
            self.calls.append(Call(new_id, call.name, call.arguments))
        self.text += content
        if logprob is not None:
            self.logprobs.append(logprob)
        if isinstance(event, Finish):
            self.done = Done("tool_calls" if self.calls else event.reason, event.matched_stop)
            deltas.append(self.done)
        return deltas

    def _parse(self, text: str, is_last: bool) -> tuple[str, list[tools.Call]]:
        """Return the part of a text that is content, and the calls that it completes."""
        if self._parser is None:
            return text, []
        content, calls = self._parser.add(text)
        if is_last:
            rest, more = self._parser.finish()
            content, calls = content + rest, calls + more
        return content, calls
