"""Tokens into text, as soon as it is certain."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class TextStream:
    """Takes tokens one by one and returns pieces of text; joined they are the text.

    A piece never splits a character, and never shows text that may turn out to be part of a stop
    text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.tokens: list[int] = []
        self.stopped_at: str | None = None  # the stop text that was met
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._n_decoded = 0  # characters
        self._held = ""  # may be the begin of a stop text

    def add(self, token: int) -> str:
        """Take in a token; return what has become certain, which may be nothing."""
        self.tokens.append(token)
        piece = self._decoder.step(self._tokenizer, token) or ""
        if not piece:
            return ""
        self._n_decoded += len(piece)
        return self._split(self._held + piece) if self._stop else piece

    def finish(self) -> str:
        """Return the rest, once no token will follow: what was held back was no stop text.

        Bytes of half a character come out, too.
        """
        if self.stopped_at is not None:
            return ""
        whole: str = self._tokenizer.decode(self.tokens, skip_special_tokens=True)
        return self._held + whole[self._n_decoded :]

    def _split(self, text: str) -> str:
        """Return what can be shown of a text, and hold back what may begin a stop text."""
        found = [(text.find(stop), stop) for stop in self._stop if stop in text]
        if found:
            at, self.stopped_at = min(found)
            return text[:at]
        certain = len(text) - begun(text, self._stop)
        self._held = text[certain:]
        return text[:certain]


def begun(text: str, markers: Sequence[str]) -> int:
    """Return how many of the last characters of a text may begin one of the markers."""
    longest = 0
    for marker in markers:
        for length in range(min(len(marker) - 1, len(text)), longest, -1):
            if text.endswith(marker[:length]):
                longest = length
                break
    return longest
