"""Answer: what the generated text of a chat choice means, independent of the protocol.

Events of the runtime go in, deltas come out. A protocol renders deltas; a response that is not
streamed is rendered from what the answer has accumulated.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections import deque
from typing import Literal

from yocobit.serving.api import tools
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
        self._held: deque[Logprob] = deque()  # of tokens whose text may not be certain
        self._n_certain = 0  # characters of the text after the log-probabilities that were returned
        self.done: Done | None = None

    def add(self, event: Event) -> list[Delta]:
        """Append an event of this choice; return the deltas that become certain with it."""
        if not isinstance(event, Token | Finish):
            return []
        content, calls = self._parse(event.text, is_last=isinstance(event, Finish))
        logprobs = self._certain_logprobs(event)
        deltas: list[Delta] = []
        if content or logprobs:
            deltas.append(Content(content, tuple(logprobs)))
        for call in calls:
            index, new_id = len(self.calls), f"call_{secrets.token_hex(12)}"
            deltas += [CallStart(index, new_id, call.name), CallArguments(index, call.arguments)]
            self.calls.append(Call(new_id, call.name, call.arguments))
        self.text += content
        self.logprobs += logprobs
        if isinstance(event, Finish):
            self.done = Done("tool_calls" if self.calls else event.reason, event.matched_stop)
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

    def _parse(self, text: str, is_last: bool) -> tuple[str, list[tools.Call]]:
        """Return the part of a text that is content, and the calls that it completes."""
        if self._parser is None:
            return text, []
        content, calls = self._parser.add(text)
        if is_last:
            rest, more = self._parser.finish()
            content, calls = content + rest, calls + more
        return content, calls
