"""Incremental detokenisation: the text of a continuation, as soon as later tokens cannot change it.

Joined, the pieces are `decode(prompt + generated)` without its longest common prefix with
`decode(prompt)`: all that follows the prompt, unless the prompt ends inside a character, which
then belongs to the continuation. Special tokens have no text.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel

from yocobit.errors import ConfigError
from yocobit.reading import boundary
from yocobit.text.byte_decoder import ByteDecoder
from yocobit.text.stop_strings import StopMatcher

_REPLACEMENT = "\ufffd"  # decoded from an incomplete character
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CONTEXT = 8  # tokens that are decoded again with the next; a character has at most 4 bytes
_WINDOW, _MAX_WINDOW = 16, 4096  # tokens


class Detokenizer:
    """Converts the tokens of one sequence to pieces of text.

    A piece never splits a character, and never contains text that may be part of a stop string.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str] = (), prompt: Sequence[int] = ()
    ) -> None:
        self.tokens: list[int] = []  # without the prompt
        self.matched_stop: str | None = None  # the stop string that ended the text
        added = tokenizer.get_added_tokens_decoder().values()
        special = frozenset(each.content for each in added if each.special)
        decoder = ByteDecoder if isinstance(tokenizer.decoder, ByteLevel) else _Window
        self._text: ByteDecoder | _Window = decoder(tokenizer, special, prompt)
        self._stop = StopMatcher(stop) if stop else None
        self._run_stop: StopMatcher | None = None  # after the byte tokens that are held back
        self._held = ""  # may be the start of a stop string

    def add(self, token: int) -> str:
        """Append a token; return the text that became certain, which may be empty."""
        self.tokens.append(token)
        piece = self._text.add(token)
        if self._stop is None:
            return piece
        if (run := self._text.run_piece) is None:
            self._run_stop = None
        else:
            self._run_stop = self._run_stop or self._stop.copy()
            if self._run_stop.find(run) is not None:
                piece = self._text.finish()  # nothing follows that could change it
        return self._certain(piece, self._stop) if piece else ""

    def finish(self) -> str:
        """Return the held-back text, after the last token.

        An incomplete character at the end becomes a replacement character.
        """
        if self.matched_stop is not None:
            return ""
        rest = self._text.finish()
        if self._stop is None:
            return rest
        text = self._certain(rest, self._stop)
        held, self._held = self._held, ""
        return text if self.matched_stop is not None else text + held

    def _certain(self, piece: str, stop: StopMatcher) -> str:
        """Return the certain part of the held text and a piece; hold back the rest."""
        text, n_held = self._held + piece, len(self._held)
        found = stop.find(piece)
        if found is not None:
            at, self.matched_stop = found
            self._held = ""
            return text[: n_held + at]
        n_certain = len(text) - stop.n_matched
        self._held = text[n_certain:]
        return text[:n_certain]


class _Window:
    """The last tokens of a sequence, whose text decides what a further token adds.

    Decoders join tokens locally: after some tokens with text, what is added does not depend on
    tokens before them. A run of byte tokens has a text only as a whole: all of it, or a replacement
    character per byte.
    """

    def __init__(
        self, tokenizer: Tokenizer, special: frozenset[str], prompt: Sequence[int]
    ) -> None:
        self.run_piece: str | None = None  # what the last byte token adds if the run ends validly
        self._tokenizer = tokenizer
        self._special = special
        decoder = tokenizer.decoder
        self._has_runs = decoder is not None and b"ByteFallback" in decoder.__getstate__()
        self._run: codecs.IncrementalDecoder | None = None
        self._limit = _WINDOW
        self._tokens, self._shown = self._tail(prompt, _CONTEXT)

    def add(self, token: int) -> str:
        """Append a token; return the text that became certain."""
        name = self._name(token)
        if name is None:
            return ""
        self._tokens.append(token)
        if self._is_byte(name):
            self._extend_run(int(name[3:5], 16))
            return ""
        self.run_piece = None
        text = self._decode(self._tokens)
        n_certain = len(text) - text.endswith(_REPLACEMENT)
        piece = self._advance(text[:n_certain])
        if len(self._tokens) > self._limit:
            self._slide(text, n_certain)
        return piece

    def finish(self) -> str:
        """Return the rest of the text, after the last token."""
        return self._advance(self._decode(self._tokens))

    def _advance(self, text: str) -> str:
        """Return what a text adds to the text that was returned."""
        if text.startswith(self._shown):
            n_shown = len(self._shown)
        elif self._shown.startswith(text):  # the last character of the prompt is incomplete
            return ""
        else:
            n_shown = _n_common(text, self._shown)
        self._shown = text
        return text[n_shown:]

    def _slide(self, text: str, n_certain: int) -> None:
        """Drop tokens from the start of the window that further text does not depend on."""
        n_held = len(text) - n_certain
        for n in range(_CONTEXT, _CONTEXT + 4):  # a window may start inside a character
            tokens, kept = self._tail(self._tokens, n)
            if text.endswith(kept) and self._shown == text[:n_certain]:
                self._tokens, self._shown = tokens, kept[: len(kept) - n_held]
                self._limit = len(tokens) + _WINDOW
                return
        self._limit = min(2 * len(self._tokens), _MAX_WINDOW)

    def _tail(self, tokens: Sequence[int], n: int) -> tuple[list[int], str]:
        """Return at least the last `n` tokens with a text, and their text; all if they have none.

        They start with no part of a run of byte tokens.
        """
        tail: list[int] = []  # the last token first
        for token in reversed(tokens):
            name = self._name(token)
            if name is None:
                continue
            if len(tail) >= n and not (self._is_byte(name) and self._starts_in_run(tail)):
                if text := self._decode(tail[::-1]):
                    return tail[::-1], text
                n = 2 * len(tail)
            tail.append(token)
        return tail[::-1], self._decode(tail[::-1])

    def _starts_in_run(self, tail: list[int]) -> bool:
        return self._is_byte(self._name(tail[-1]) or "")

    def _extend_run(self, byte: int) -> None:
        if self.run_piece is None:
            self._run = codecs.getincrementaldecoder("utf-8")()
        self.run_piece = ""
        if self._run is not None:
            try:
                self.run_piece = self._run.decode(bytes([byte]))
            except UnicodeDecodeError:
                self._run = None  # until the run ends

    def _name(self, token: int) -> str | None:
        """Return the name of a token that has a text; None for special and unknown tokens."""
        name = self._tokenizer.id_to_token(token)
        return None if name in self._special else name

    def _is_byte(self, name: str) -> bool:
        return self._has_runs and _BYTE_TOKEN.fullmatch(name) is not None

    def _decode(self, tokens: Sequence[int]) -> str:
        try:
            with boundary("text", "cannot be decoded"):
                text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=False)
                return text
        except ConfigError:  # a decoder that fails with some tokens, not with each one alone
            return ""


def _n_common(left: str, right: str) -> int:
    """Return the length of the longest common prefix."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))


def continuation(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """Return the text of tokens after a prompt."""
    detokenizer = Detokenizer(tokenizer, prompt=prompt)
    return "".join(map(detokenizer.add, tokens)) + detokenizer.finish()
