"""Markdown on a terminal as it streams: wrapped at words, with headings, lists, bold and code.

Other syntax is printed as it is. Without colours the markers of bold and code stay, too.
"""

from __future__ import annotations

import re
from typing import TextIO

from rich.cells import cell_len

_BOLD, _DIM, _CODE = "1", "2", "36"  # SGR parameters
_WIDE = "\u2e80-\uffef"  # East Asian characters: a line may be wrapped before each
_TOKEN = re.compile(rf"\n| +|[{_WIDE}]|[^ \n{_WIDE}]+")
_MARKER = re.compile(r"(\*\*|`+)")
_ITEM = re.compile(r"[-*+>]|\d{1,3}[.)]")
_HEADING = re.compile(r"#{1,6}")
_FENCES = ("```", "~~~")
_MAX_HELD = 64  # characters of an unfinished word
_TAB = "    "


class MarkdownWriter:
    """Writes Markdown that arrives in pieces; `finish` ends the text."""

    def __init__(self, stream: TextIO, width: int, has_colours: bool) -> None:
        self._stream = stream
        self._width = width
        self._has_colours = has_colours
        self._held = ""  # a word that may continue in the next piece
        self._is_in_fence = False
        self._start_line()

    def write(self, text: str) -> None:
        """Write a piece, except for a word that may continue in the next one."""
        words = _TOKEN.findall(self._held + text.replace("\t", _TAB))
        is_open = bool(words) and words[-1] != "\n" and len(words[-1]) < _MAX_HELD
        self._held = words.pop() if is_open else ""
        for word in words:
            self._add(word)
        self._stream.flush()

    def finish(self) -> None:
        """Write what is held, and end the line."""
        if self._held.strip():
            self._add(self._held)
        self._held = ""
        self._stream.write("\n")
        self._stream.flush()
        self._start_line()

    def _start_line(self) -> None:
        self._column = 0
        self._indent = 0  # of the lines that continue this one
        self._spaces = ""  # before the next word
        self._line_style: str | None = None  # of the whole line; None until its first word
        self._is_bold = self._is_code = False

    def _add(self, word: str) -> None:
        if word == "\n":
            self._stream.write("\n")
            self._start_line()
            return
        if word.startswith(" "):
            self._spaces += word
            return
        if self._line_style is None:
            self._line_style = self._style_of_line(word)
        parts = [(word, self._line_style)] if self._line_style else self._parts(word)
        width = sum(cell_len(text) for text, _ in parts)
        if self._column + len(self._spaces) + width > self._width and self._may_wrap():
            self._stream.write("\n")
            self._spaces, self._column = " " * self._indent, 0
        self._stream.write(self._spaces)
        self._column += len(self._spaces) + width
        self._spaces = ""
        for text, style in parts:
            has_style = style and self._has_colours
            self._stream.write(f"\x1b[{style}m{text}\x1b[0m" if has_style else text)

    def _may_wrap(self) -> bool:
        """Whether a new line helps: code stays as it is, and so does the first word of a line."""
        return not self._is_in_fence and self._column > self._indent

    def _style_of_line(self, word: str) -> str:
        """Return the style of the line that starts with a word, "" for that of its parts."""
        self._indent = len(self._spaces)
        if word.startswith(_FENCES):
            self._is_in_fence = not self._is_in_fence
            return _DIM
        if self._is_in_fence:
            return _CODE
        if _HEADING.fullmatch(word):
            return _BOLD
        if _ITEM.fullmatch(word):
            self._indent += len(word) + 1
        return ""

    def _parts(self, word: str) -> list[tuple[str, str]]:
        """Split a word at the markers of bold and code; return each part and its style."""
        parts = []
        pieces = _MARKER.split(word)  # text, marker, text, ..., text
        for i, piece in enumerate(pieces):
            is_marker = i % 2 == 1 and self._toggle(piece, pieces[i - 1], pieces[i + 1])
            if piece and not (is_marker and self._has_colours):
                parts.append((piece, _CODE if self._is_code else _BOLD if self._is_bold else ""))
        return parts

    def _toggle(self, marker: str, before: str, after: str) -> bool:
        """Start or end bold or code; return False if the marker is text here."""
        if marker == "**":
            if self._is_code or not (before if self._is_bold else after):
                return False
            self._is_bold = not self._is_bold
        else:
            if not self._is_code and before[-1:].isalnum():
                return False  # an accent or an apostrophe
            self._is_code = not self._is_code
        return True
