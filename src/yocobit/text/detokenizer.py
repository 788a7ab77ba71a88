"""Incremental detokenisation: the text of a continuation, as soon as later tokens cannot change it.

Joined, the pieces are `decode(prompt + generated)` without its longest common prefix with
`decode(prompt)`: all that follows the prompt, unless the prompt ends inside a character, which
then belongs to the continuation. Special tokens have no text. Returned text is final: a decoder
that replaces text across tokens, such as " ." by ".", has no effect on the end of a piece.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Collection, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel

from yocobit.errors import ConfigError
from yocobit.reading import boundary
from yocobit.text.byte_decoder import ByteDecoder
from yocobit.text.control_tokens import BYTE_TOKEN
from yocobit.text.stop_strings import StopMatcher

_REPLACEMENT = "\ufffd"  # decoded from an incomplete character
_CONTEXT = 8  # tokens that are decoded again with the next; a character has at most 4 bytes
_WINDOW, _MAX_WINDOW = 16, 4096  # tokens
_MAX_CACHED = 1 << 15  # tokens of a vocabulary whose texts are cached, about 300 bytes each
# The decoders of SentencePiece's BPE; decoders that strip blanks at the start may follow.
_SENTENCEPIECE = [
    {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]


class Detokenizer:
    """Converts the tokens of one sequence to pieces of text.

    A piece never splits a character, and never contains text that may be part of a stop string.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        prompt: Sequence[int] = (),
        kept: Collection[str] = (),
    ) -> None:
        """`kept` are the stop strings that stay in the text."""
        self.tokens: list[int] = []  # without the prompt
        # The text of the last token, certain or held back; after `finish`, the rest of the text.
        self.piece = ""
        self.matched_stop: str | None = None  # the stop string that ended the text
        shared = _shared(tokenizer)
        self._text: ByteDecoder | _Window = (
            ByteDecoder(tokenizer, shared.special, prompt)
            if shared.is_byte_level
            else _Window(tokenizer, shared, prompt)
        )
        self._kept = frozenset(kept)
        self.stop_at(stop)
        self._run_stop: StopMatcher | None = None  # after the byte tokens that are held back
        self._held = ""  # may be the start of a stop string

    @property
    def is_open(self) -> bool:
        """Whether the last token ends inside a character, whose text follows."""
        return self._text.is_open

    def stop_at(self, stop: Sequence[str]) -> None:
        """Match these stop strings in the text that follows."""
        self._stop = StopMatcher(stop) if stop else None

    def add(self, token: int) -> str:
        """Append a token; return the text that became certain, which may be empty."""
        self.tokens.append(token)
        piece = self.piece = self._text.add(token)
        if self._stop is None:
            return piece
        if (run := self._text.run_piece) is None:
            self._run_stop = None
        else:
            self._run_stop = self._run_stop or self._stop.copy()
            if self._run_stop.find(run) is not None:
                # Nothing follows that could change it.
                piece = self.piece = self._text.finish()
        return self._certain(piece, self._stop) if piece else ""

    def finish(self) -> str:
        """Return the held-back text, after the last token.

        An incomplete character at the end becomes a replacement character.
        """
        self.piece = ""
        if self.matched_stop is not None:
            return ""
        rest = self.piece = self._text.finish()
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
            n_kept = len(self.matched_stop) if self.matched_stop in self._kept else 0
            return text[: n_held + at + n_kept]
        n_certain = len(text) - stop.n_matched
        self._held = text[n_certain:]
        return text[:n_certain]


class _Shared:
    """The properties of a tokenizer that all its sequences share, without a reference to it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        added = tokenizer.get_added_tokens_decoder().values()
        self.special = frozenset(each.content for each in added if each.special)
        self.is_byte_level = isinstance(tokenizer.decoder, ByteLevel)
        state = b"null" if tokenizer.decoder is None else tokenizer.decoder.__getstate__()
        self.has_runs = b"ByteFallback" in state
        self.is_local = _is_local(json.loads(state))
        # By token: the text that it adds to other text, and its text as the first token.
        self.texts: dict[int, tuple[str, str]] = {}


_SHARED: WeakKeyDictionary[Tokenizer, _Shared] = WeakKeyDictionary()


def _shared(tokenizer: Tokenizer) -> _Shared:
    """Return the shared properties of a tokenizer, from a cache."""
    if (found := _SHARED.get(tokenizer)) is None:
        found = _SHARED[tokenizer] = _Shared(tokenizer)
    return found


def _is_local(decoder: Any) -> bool:
    """Return whether a token, unless a byte, adds the same text to all non-empty texts."""
    if decoder is None or decoder["type"] != "Sequence":
        return decoder is not None and decoder["type"] in ("WordPiece", "Metaspace")
    n, steps = len(_SENTENCEPIECE), decoder["decoders"]
    return steps[:n] == _SENTENCEPIECE and all(
        step["type"] == "Strip" and step["stop"] == 0 for step in steps[n:]
    )


class _Window:
    """The last tokens of a sequence, whose text decides what a further token adds.

    Decoders join tokens locally: after some tokens with text, what is added does not depend on
    tokens before them. A run of byte tokens has a text only as a whole: all of it, or a replacement
    character per byte.
    """

    def __init__(self, tokenizer: Tokenizer, shared: _Shared, prompt: Sequence[int]) -> None:
        self.run_piece: str | None = None  # what the last byte token adds if the run ends validly
        self.is_open = False  # whether the last token ends inside a character
        self._tokenizer = tokenizer
        self._shared = shared
        self._run: codecs.IncrementalDecoder | None = None
        self._limit = _WINDOW
        self._tokens, self._shown = self._tail(prompt, _CONTEXT)
        # Whether the added text depends on the token only: no run of bytes is open, and the text
        # is neither empty nor held back.
        self._is_settled = shared.is_local and bool(self._shown)

    def add(self, token: int) -> str:
        """Append a token; return the text that became certain."""
        if self._is_settled and (texts := self._shared.texts.get(token)) is not None:
            added, alone = texts
            self._tokens, self._shown = [token], alone
            return added  # no run is open, so is_open is False already
        name = self._name(token)
        if name is None:
            return ""
        self._tokens.append(token)
        if self._is_byte(name):
            self._is_settled, self.is_open = False, True
            self._extend_run(int(name[3:5], 16))
            return ""
        self.run_piece = None
        text = self._decode(self._tokens)
        n_certain = len(text) - text.endswith(_REPLACEMENT)
        self.is_open = n_certain < len(text)
        was_settled = self._is_settled
        piece = self._advance(text[:n_certain])
        self._is_settled = self._shared.is_local and n_certain == len(text) > 0
        if was_settled and self._is_settled:
            self._cache(token, piece)
        if len(self._tokens) > self._limit:
            self._slide(text, n_certain)
        return piece

    def finish(self) -> str:
        """Return the rest of the text, after the last token."""
        return self._advance(self._decode(self._tokens))

    def _cache(self, token: int, added: str) -> None:
        """Cache the text that a token adds, unless the token alone has none: a window has text."""
        texts, alone = self._shared.texts, self._decode([token])
        if alone and len(texts) < _MAX_CACHED:
            texts[token] = added, alone

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
        return None if name in self._shared.special else name

    def _is_byte(self, name: str) -> bool:
        return self._shared.has_runs and BYTE_TOKEN.fullmatch(name) is not None

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
