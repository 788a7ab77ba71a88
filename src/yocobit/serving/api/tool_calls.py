"""Tool calls in answers: the functions that a model requests the client to call.

Two forms are parsed: marked (`<tool_call>{...}</tool_call>` of Hermes and Qwen), and bare: an
answer that is such JSON, or an array of it, as a whole (Llama 3, Mistral). The JSON has a name and
"arguments" or "parameters".
"""

from __future__ import annotations

import dataclasses
import re
import secrets
from collections.abc import Callable, Sequence

import msgspec

from yocobit.serving import limits
from yocobit.text.stop_strings import partial_match

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_BLANKS = " \t\r\n"
_BARE = re.compile(r"\s*(?:\[\s*)?(?:\{|$)")  # the start of bare calls
# The start of a call, up to the object of its arguments: string members, among them the name.
_STRING = r'"(?:[^"\\]|\\.)*"'
_HEAD = re.compile(
    rf"(\s*\{{(?:\s*{_STRING}\s*:\s*{_STRING}\s*,)*\s*{_STRING}\s*:\s*{_STRING})"
    r'\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)',
    re.DOTALL,
)
_MAX_HEAD = 1000  # characters; the arguments after a longer head do not stream


@dataclasses.dataclass(frozen=True)
class CallStart:
    """A call starts: the `index`-th of the answer, from 0."""

    index: int
    id: str
    name: str


@dataclasses.dataclass(frozen=True)
class CallArguments:
    """A piece of the arguments of a call, which are JSON."""

    index: int
    text: str


Piece = str | CallStart | CallArguments  # a str is content


class ToolCallParser:
    """Splits a streamed answer into content and tool calls.

    Once the name of a call and the start of its arguments are known, the arguments stream as the
    model writes them. A call in another order of members is certain only when it is complete.
    """

    def __init__(self, names: Sequence[str], max_calls: int = limits.TOOLS) -> None:
        """The answer after `max_calls` calls is dropped."""
        self._names = frozenset(names)
        self._max_calls = max_calls
        self._held = ""
        self._has_text = False  # other than blanks
        self._n_calls = 0
        self._is_marked = False  # whether the current call is
        self._braces = _Braces()
        self._parse: Callable[[bool], list[Piece] | None] = self._parse_start

    @property
    def is_truncated(self) -> bool:
        """Whether the answer so far ends within the arguments of a call."""
        return self._parse == self._parse_arguments

    def add(self, text: str) -> list[Piece]:
        """Append a part of the answer; return what became certain."""
        self._held += text
        return self._pieces(is_last=False)

    def finish(self) -> list[Piece]:
        """Return the rest, at the end of the answer."""
        return self._pieces(is_last=True)

    def _pieces(self, is_last: bool) -> list[Piece]:
        pieces: list[Piece] = []
        while self._held and (more := self._parse(is_last)) is not None:
            pieces += more
        return pieces

    # Each of these parses a part of the held text; None if it needs more.

    def _parse_start(self, is_last: bool) -> list[Piece] | None:
        """Parse blanks, or bare calls if the answer may consist of them."""
        if _BARE.match(self._held):
            if (started := self._start_call(self._held.lstrip(_BLANKS + "["))) is not None:
                return started
            if not is_last and OPEN not in self._held:
                return None
            if is_last and (calls := _decoded(self._held, self._names)):
                self._parse = self._drop
                return [piece for call in calls for piece in self._whole_call(*call)]
        self._parse = self._parse_text
        return []

    def _parse_text(self, is_last: bool) -> list[Piece] | None:
        """Parse content, up to the marker of a call."""
        text, marker, rest = self._held.partition(OPEN)
        if marker:
            self._held, self._is_marked, self._parse = rest, True, self._parse_marked
        else:
            n_held = 0 if is_last else partial_match(self._held, [OPEN])
            text = self._held[: len(self._held) - n_held]
            if not text or not (text.strip() or self._has_text or is_last):
                return None  # blanks may precede a call
            self._held = self._held[len(text) :]
        is_separator = not text.strip() and (marker or self._n_calls > 0)
        return [] if is_separator and not self._has_text else self._content(text)

    def _parse_marked(self, is_last: bool) -> list[Piece] | None:
        """Parse a call after its marker."""
        if (started := self._start_call(self._held)) is not None:
            return started
        body, marker, rest = self._held.partition(CLOSE)
        if not marker and not is_last:
            return None
        self._held, self._parse = rest, self._parse_text
        if calls := _decoded(body, self._names):
            return [piece for call in calls for piece in self._whole_call(*call)]
        return self._content(OPEN + body + marker)

    def _parse_arguments(self, is_last: bool) -> list[Piece] | None:
        """Parse a part of arguments that stream."""
        text, is_complete = self._take_object()
        if is_complete:
            self._braces, self._parse = _Braces(depth=1), self._parse_members
        return [CallArguments(self._n_calls - 1, text)]

    def _parse_members(self, is_last: bool) -> list[Piece] | None:
        """Drop the members of a call after its arguments."""
        _, is_complete = self._take_object()
        if is_complete:
            if self._n_calls >= self._max_calls:
                self._parse = self._drop
            else:
                self._parse = self._parse_close if self._is_marked else self._parse_next
        return []

    def _parse_close(self, is_last: bool) -> list[Piece] | None:
        """Drop what precedes the closing marker of a call."""
        _, marker, rest = self._held.partition(CLOSE)
        if not marker:
            self._held = self._held[-len(CLOSE) :]
            return None
        self._held, self._parse = rest, self._parse_text
        return []

    def _parse_next(self, is_last: bool) -> list[Piece] | None:
        """Parse a bare call after another one."""
        self._held = self._held.lstrip(_BLANKS + ",;]")
        if self._held.startswith("{") and not is_last:
            return self._start_call(self._held)
        if self._held:
            self._parse = self._parse_text
        return []

    def _drop(self, is_last: bool) -> list[Piece] | None:
        self._held = ""
        return None

    def _start_call(self, text: str) -> list[Piece] | None:
        """Return the start of a call whose arguments stream; None if `text` starts with none."""
        head = _HEAD.match(text, 0, _MAX_HEAD)
        call = _call(head[1] + "}", self._names) if head else None
        if head is None or call is None:
            return None
        self._held, self._parse = text[head.end() :], self._parse_arguments
        self._braces = _Braces()
        return [self._call_start(call[0])]

    def _whole_call(self, name: str, arguments: str) -> list[Piece]:
        if self._n_calls >= self._max_calls:
            return []
        start = self._call_start(name)
        if self._n_calls >= self._max_calls:
            self._parse = self._drop
        return [start, CallArguments(start.index, arguments)]

    def _call_start(self, name: str) -> CallStart:
        self._n_calls += 1
        return CallStart(self._n_calls - 1, f"call_{secrets.token_hex(12)}", name)

    def _content(self, text: str) -> list[Piece]:
        self._has_text = self._has_text or bool(text.strip())
        return [text] if text else []

    def _take_object(self) -> tuple[str, bool]:
        """Return the held text up to the end of an object, and whether it ends there."""
        end = self._braces.end(self._held)
        text, self._held = self._held[:end], "" if end is None else self._held[end:]
        return text, end is not None


class _Braces:
    """Finds the end of an object in JSON that comes in pieces."""

    def __init__(self, depth: int = 0) -> None:
        """`depth` is the number of braces that are open."""
        self._depth = depth
        self._is_string = self._is_escaped = False

    def end(self, piece: str) -> int | None:
        """Append a piece; return the position in it after the brace that closes the object."""
        for i, character in enumerate(piece):
            if self._is_escaped:
                self._is_escaped = False
            elif self._is_string:
                self._is_string = character != '"'
                self._is_escaped = character == "\\"
            elif character == '"':
                self._is_string = True
            elif character in "{}":
                self._depth += 1 if character == "{" else -1
                if self._depth == 0:
                    return i + 1
        return None


def _decoded(text: str, names: frozenset[str]) -> list[tuple[str, str]]:
    """Return names and arguments of a call, or of an array of calls; [] if it is other text."""
    try:
        items = [text]
        if text.lstrip().startswith("["):
            items = [
                bytes(raw).decode() for raw in msgspec.json.decode(text, type=list[msgspec.Raw])
            ]
    except (msgspec.DecodeError, RecursionError):
        return []
    calls = [_call(item, names) for item in items]
    return [call for call in calls if call is not None] if None not in calls else []


def _call(text: str, names: frozenset[str]) -> tuple[str, str] | None:
    """Return name and arguments of a call; None if `text` is not one."""
    try:
        members = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        name = msgspec.json.decode(members.get("name", b"null"))
        if not isinstance(name, str) or name not in names:
            return None
        raw = bytes(members.get("arguments", members.get("parameters", b"{}")))
        # A string holds JSON: OpenAI's form of a call.
        arguments = msgspec.json.decode(raw) if raw[:1] == b'"' else raw.decode()
    except (msgspec.DecodeError, RecursionError):
        return None
    if arguments == "null":
        return name, "{}"
    return (name, arguments) if arguments.lstrip().startswith("{") else None
