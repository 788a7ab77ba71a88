"""Incremental detokenisation: emits text as soon as later tokens can no longer change it."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class Detokenizer:
    """Converts the tokens of one sequence to pieces of text; joined, they are the whole text.

    A piece never splits a character, and never contains text that may be part of a stop
    string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.tokens: list[int] = []
        self.matched_stop: str | None = None  # the stop string that ended the text
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._n_decoded = 0  # characters
        self._held = ""  # may be the start of a stop string

    def add(self, token: int) -> str:
        """Append a token; return the text that became certain, which may be empty."""
        self.tokens.append(token)
        piece = self._decoder.step(self._tokenizer, token) or ""
        if not piece:
            return ""
        self._n_decoded += len(piece)
        return self._split(self._held + piece) if self._stop else piece

    def finish(self) -> str:
        """Return the held-back text, after the last token.

        An incomplete character at the end becomes a replacement character.
        """
        if self.matched_stop is not None:
            return ""
        whole: str = self._tokenizer.decode(self.tokens, skip_special_tokens=True)
        return self._held + whole[self._n_decoded :]

    def _split(self, text: str) -> str:
        """Return the certain part of a text; hold back what may be the start of a stop string."""
        found = [(text.find(stop), stop) for stop in self._stop if stop in text]
        if found:
            at, self.matched_stop = min(found)
            return text[:at]
        certain = len(text) - partial_match(text, self._stop)
        self._held = text[certain:]
        return text[:certain]


def partial_match(text: str, markers: Sequence[str]) -> int:
    """Return the length of the longest suffix of a text that is a proper prefix of a marker."""
    longest = 0
    for marker in markers:
        for length in range(min(len(marker) - 1, len(text)), longest, -1):
            if text.endswith(marker[:length]):
                longest = length
                break
    return longest
