"""Decoding of byte-level tokens: each has bytes of its own, so a text is decoded incrementally.

The same text as the library's ByteLevel decoder, at a fraction of the cost: one token is decoded,
not a window of tokens.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Final

from tokenizers import Tokenizer

_CONTINUATION = bytes(range(0x80, 0xC0))
_MAX_BYTES = 4  # of a character
# GPT-2's names of bytes: printable ones name themselves, the others follow from U+0100.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = sorted({*range(256)} - {*_PRINTABLE})
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(0x100 + i): byte for i, byte in enumerate(_OTHERS)
}


class ByteDecoder:
    """Decodes the tokens of one sequence after a prompt."""

    run_piece: Final = None  # every character is returned when it is complete

    def __init__(
        self, tokenizer: Tokenizer, special: frozenset[str], prompt: Sequence[int]
    ) -> None:
        """`special` are the names of tokens without a text."""
        self._tokenizer = tokenizer
        self._special = special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        tail = b""
        for token in reversed(prompt):
            if len(tail) >= _MAX_BYTES:
                break
            tail = self._bytes(token) + tail
        self._decoder.decode(tail.lstrip(_CONTINUATION))
        # What stands for the prompt's incomplete character in the decoded prompt, if it has one.
        self._shown = self._decoder.getstate()[0].decode("utf-8", "replace")

    @property
    def is_open(self) -> bool:
        """Whether the last token ends inside a character."""
        return bool(self._decoder.getstate()[0])

    def add(self, token: int) -> str:
        """Append a token; return the text that became certain."""
        return self._after_prompt(self._decoder.decode(self._bytes(token)))

    def finish(self) -> str:
        """Return the rest of the text, after the last token."""
        return self._after_prompt(self._decoder.decode(b"", final=True))

    def _after_prompt(self, piece: str) -> str:
        if not self._shown or not piece:
            return piece
        shown, self._shown = self._shown, ""
        return piece.removeprefix(shown)

    def _bytes(self, token: int) -> bytes:
        name = self._tokenizer.id_to_token(token)
        if name is None or name in self._special:
            return b""
        try:
            return bytes(map(_BYTES.__getitem__, name))
        except KeyError:  # an added token that is not made of bytes' names
            return str(name).encode()
