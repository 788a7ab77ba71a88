"""Encoding: text to tokens, the same in training, evaluation, generation, chat and the server.

Text is never encoded as special tokens: only a chat template writes them. Texts are encoded by a
twin of the tokenizer in which every special token has a private, random name. In a conversation,
the special tokens that a message spells are broken by a mark before the template is rendered; those
in the rendered text are then the template's, and become the private names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from yocobit.errors import UserError
from yocobit.reading import boundary
from yocobit.text.control_tokens import ControlTokens
from yocobit.text.tokenizer import added_tokens, check_lossless, without_panic_messages
from yocobit.text.windows import SHORT, Span, encode_short, encode_windows

# Variables of chat templates, as in transformers. Other variables are texts of the user.
TOKEN_NAMES = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))

Render = Callable[..., str]  # of messages and variables


class TextEncoder:
    """Encodes texts and conversations with one tokenizer."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        subject: str | Path = "tokenizer",
        control_tokens: Collection[int] = (),
    ) -> None:
        """`control_tokens` are the model's EOS and BOS tokens, which no text becomes.

        ConfigError, naming `subject`, if the tokenizer loses text or cannot encode it.
        """
        self.tokenizer = tokenizer
        self._subject = subject
        self._control = ControlTokens(tokenizer, control_tokens)
        check_lossless(self._plain if self._control.needs_twin else tokenizer, subject)

    @cached_property
    def suffix(self) -> tuple[int, ...]:
        """The tokens that the tokenizer appends to a text: an EOS token, of embedding models.

        They belong to a text that is embedded, not to one that is continued.
        """
        return added_tokens(self.tokenizer, self._subject).after

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text; UserError if it is not valid UTF-8."""
        if len(text) > SHORT:
            return [*chain.from_iterable(self.encode_pieces([text]))]
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of short texts, which the tokenizer's threads share."""
        for text in texts:
            check_utf8(text)
        with boundary("text", "cannot be encoded", UserError):
            # Made at first use: the twin of a large vocabulary takes seconds.
            if not self._control.needs_twin and all(map(self._control.is_plain, texts)):
                encoded = _encode_batch(self.tokenizer, texts)
                if self._control.ids.isdisjoint(chain.from_iterable(encoded)):
                    return encoded
            return _encode_batch(self._plain, texts)

    def encode_span_batch(self, texts: Sequence[str]) -> list[Span]:
        """Return the tokens of short texts with the characters that they cover."""
        for text in texts:
            check_utf8(text)
        with boundary("text", "cannot be encoded", UserError):
            return encode_short(self._plain, texts)

    def encode_pieces(self, pieces: Iterable[str]) -> Iterator[Sequence[int]]:
        """Yield the tokens of a text of any length, given in pieces, in bounded memory."""
        return (span.ids for span in self.encode_spans(pieces))

    def encode_spans(self, pieces: Iterable[str]) -> Iterator[Span]:
        """Yield the tokens of a text, given in pieces, with the characters that they cover."""
        with boundary("text", "cannot be encoded", UserError):
            yield from encode_windows(self._plain, map(check_utf8, pieces))

    def encode_chat(
        self,
        render: Render,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        rendered: str | None = None,
    ) -> list[int]:
        """Return the tokens of a conversation, the special tokens of its template included.

        `render` is ChatTemplate.render or an equivalent, `rendered` its result if known.
        """
        names = {name: value for name, value in variables.items() if name in TOKEN_NAMES}
        given = {name: value for name, value in variables.items() if name not in names}
        with boundary("messages", "cannot be rendered", UserError):
            marked = self._control.mark([messages, given])
        if marked is None:
            text = render(messages, **variables) if rendered is None else rendered
            tokenizer = self.tokenizer
        else:
            ((messages, given), mark), tokenizer = marked, self._plain
            text = self._control.rename(render(messages, **given, **names), mark)
        check_utf8(text)
        with boundary("messages", "cannot be encoded", UserError):
            if len(text) <= SHORT:
                return _encode_batch(tokenizer, [text])[0]
            return [*chain.from_iterable(span.ids for span in encode_windows(tokenizer, [text]))]

    def spells_special_tokens(self, data: Any) -> bool:
        """Whether a string in messages or variables spells a special token, or starts one."""
        return self._control.is_spelled_in(data)

    @cached_property
    def _plain(self) -> Tokenizer:
        """The twin of the tokenizer, in which special tokens have private names."""
        with boundary(self._subject, "cannot encode text"), without_panic_messages():
            return self._control.twin()


def _encode_batch(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    # Unlike encode, this releases the GIL.
    encodings = tokenizer.encode_batch_fast([*texts], add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def check_utf8(text: str) -> str:
    """Return a text; UserError if it has lone surrogates, to which Python decodes other bytes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"text is not UTF-8 (it has {text[error.start]!r})") from None
    return text
