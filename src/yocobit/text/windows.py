"""Encoding of texts of any length in bounded memory: windows that overlap.

A tokenizer's memory is some hundred bytes per character, so a long text is encoded in windows of
WINDOW characters, each with OVERLAP more on both sides. Two windows are joined at a token boundary
near the middle of their overlap around which both have the same tokens: the ends of the windows
have no influence there, so the tokens are those of the text encoded as a whole. Windows without
such a boundary are encoded as one, up to MAX_WINDOW characters; a longer text is cut there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from tokenizers import Encoding, Tokenizer

WINDOW = 1 << 16  # characters: few documents are longer
OVERLAP = 1 << 11
SHORT = WINDOW + OVERLAP  # characters of a text that is one window
MAX_WINDOW = 1 << 20
_AGREEMENT = 1 << 8  # characters on each side of a boundary whose tokens must be the same
_BATCH = 8  # windows that the tokenizer's threads share


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of a text, and the characters that each covers."""

    ids: Sequence[int]
    starts: Sequence[int]  # of the token's characters, from the start of the text
    ends: Sequence[int]


def encode_windows(tokenizer: Tokenizer, pieces: Iterable[str]) -> Iterator[Span]:
    """Yield the tokens of a text that is given in pieces of any length, in order."""
    held: _Window | None = None
    start = 0  # characters whose tokens were yielded
    for window in _encoded(tokenizer, _windows(pieces)):
        if held is None:
            held = window
            continue
        boundary = _boundary(held, window)
        if boundary is None:
            union = held.text + window.text[held.end - window.begin :]
            if len(union) <= MAX_WINDOW:
                (held,) = _encode(tokenizer, [(held.begin, union)])
                continue
            boundary = window.begin + OVERLAP
        yield held.part(start, boundary)
        held, start = window, boundary
    if held is not None:
        yield held.part(start, None)


def encode_short(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Span]:
    """Return the tokens of texts, each of them one window."""
    return list(_encode(tokenizer, [(0, text) for text in texts]))


@dataclass(frozen=True)
class _Window(Span):
    begin: int  # of the text, in characters
    text: str

    @property
    def end(self) -> int:
        return self.begin + len(self.text)

    def part(self, start: int, end: int | None) -> Span:
        """Return the tokens that start at characters `start` to `end`."""
        first = bisect_left(self.starts, start) if start else 0
        last = len(self.ids) if end is None else bisect_left(self.starts, end)
        return Span(self.ids[first:last], self.starts[first:last], self.ends[first:last])

    def token(self, i: int) -> tuple[int, int, int]:
        return self.ids[i], self.starts[i], self.ends[i]


def _windows(pieces: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Yield the start and the text of each window."""
    text, begin, n_left = "", 0, 0  # n_left: characters of the overlap with the window before
    for piece in pieces:
        for i in range(0, len(piece), WINDOW):
            text += piece[i : i + WINDOW]
            while len(text) > n_left + WINDOW + OVERLAP:
                yield begin, text[: n_left + WINDOW + OVERLAP]
                n_done = n_left + WINDOW - OVERLAP
                text, begin, n_left = text[n_done:], begin + n_done, OVERLAP
    yield begin, text


def _encoded(tokenizer: Tokenizer, windows: Iterator[tuple[int, str]]) -> Iterator[_Window]:
    while batch := list(islice(windows, _BATCH)):
        yield from _encode(tokenizer, batch)


def _encode(tokenizer: Tokenizer, windows: Sequence[tuple[int, str]]) -> Iterator[_Window]:
    # Unlike encode, encode_batch releases the GIL.
    texts = [text for _, text in windows]
    encodings: list[Encoding] = tokenizer.encode_batch(texts, add_special_tokens=False)
    for (begin, text), encoding in zip(windows, encodings, strict=True):
        offsets = encoding.offsets
        starts, ends = ([begin + offset[i] for offset in offsets] for i in (0, 1))
        yield _Window(encoding.ids, starts, ends, begin, text)


def _boundary(left: _Window, right: _Window) -> int | None:
    """Return the position where two windows are joined; None without agreement."""
    middle = right.begin + OVERLAP
    low, high = middle - OVERLAP // 2, middle + OVERLAP // 2
    candidates = range(bisect_left(left.starts, low), bisect_left(left.starts, high))
    for i in sorted(candidates, key=lambda i: abs(left.starts[i] - middle)):
        position = left.starts[i]
        if i and left.starts[i - 1] == position:  # inside a character
            continue
        if _agree(left, i, right, bisect_left(right.starts, position), position):
            return position
    return None


def _agree(left: _Window, i: int, right: _Window, j: int, position: int) -> bool:
    """Whether two windows have the same tokens around a position, before tokens i and j."""

    def near(window: _Window, k: int, step: int) -> Iterator[tuple[int, int, int]]:
        while 0 <= k < len(window.ids) and abs(window.starts[k] - position) < _AGREEMENT:
            yield window.token(k)
            k += step

    return list(near(left, i - 1, -1)) == list(near(right, j - 1, -1)) and list(
        near(left, i, 1)
    ) == list(near(right, j, 1))
