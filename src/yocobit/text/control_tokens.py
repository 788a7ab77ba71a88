"""Special tokens in text: which strings spell one, and the twin of a tokenizer without them.

In the twin, every special token has a private, random name, also in the model's vocabulary, so
that no text spells it. Everything else is the tokenizer's own: normalizer, segmentation, merges,
and added tokens that are not special.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import msgspec
from tokenizers import Tokenizer

from yocobit.errors import UserError

# Private-use planes of Unicode: one character that no text of a conversation has is the mark.
_MARKS = (*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE))
_START = 3  # characters
_PRIVATE_USE = re.compile("[\U000f0000-\U0010fffd]|\\\\ud[89ab]", re.IGNORECASE)


class ControlTokens:
    """The special tokens of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        added = list(tokenizer.get_added_tokens_decoder().values())
        # First and last character stay: single_word of adjacent tokens depends on them.
        self._private = {
            each.content: each.content[0] + secrets.token_hex(16) + each.content[-1]
            for each in added
            if each.special and each.content
        }
        # Names by their first characters: most texts have none of these, and are not searched.
        self._by_start: dict[str, list[str]] = {}
        for name in self._private:
            self._by_start.setdefault(name[:_START].lower(), []).append(name)
        self._prefixes = {
            name[:n].casefold() for name in self._private for n in range(1, len(name))
        }
        self._longest = max(map(len, self._private), default=0)
        # As in the library: the leftmost token, and of those the longest.
        longest_first = sorted(added, key=lambda each: -len(each.content))
        self._added = [
            (
                rf"(?<!\w){re.escape(each.content)}(?!\w)"
                if each.single_word
                else re.escape(each.content)
            )
            for each in longest_first
            if each.content
        ]
        self._normalized = [
            normalize(tokenizer, each.content).strip()
            for each in added
            if each.special and each.normalized
        ]
        self._tokenizer = tokenizer

    def __bool__(self) -> bool:
        return bool(self._private)

    def spelled_in(self, text: str) -> list[str]:
        """Return the special tokens that a text spells, in upper or lower case."""
        lower = text.lower()
        return [
            name
            for start, names in self._by_start.items()
            if start in lower
            for name in names
            if name.lower() in lower
        ]

    def is_plain(self, text: str) -> bool:
        """Whether the tokenizer itself finds no special token in a text."""
        if self.spelled_in(text):
            return False
        if not self._normalized:
            return True
        normalized = normalize(self._tokenizer, text)
        return not any(name in normalized for name in self._normalized)

    def mark(self, data: Any) -> tuple[Any, str] | None:
        """Return plain data whose strings spell no special token, and the mark that breaks them.

        None if no string of the data spells one, or a part of one at its end.
        """
        texts = list(_strings(data))
        if not any(map(self._is_suspect, texts)):
            return None
        mark = _mark("\n".join(text for text in texts if _PRIVATE_USE.search(text)))
        return _mapped(data, lambda text: self._broken(text, mark)), mark

    def rename(self, text: str, mark: str) -> str:
        """Return a rendered text: special tokens have their private names, marks are removed."""
        pattern = f"(?:{'|'.join(self._added)})(?!{mark})"
        renamed = re.sub(pattern, lambda found: self._private.get(found[0], found[0]), text)
        return renamed.replace(mark, "").replace(_escaped(mark), "")

    def twin(self) -> Tokenizer:
        """Return the tokenizer with private names."""
        if not self._private:
            return self._tokenizer
        fields = msgspec.json.decode(self._tokenizer.to_str())
        for added in fields["added_tokens"]:
            if added["special"]:
                added["content"] = self._private.get(added["content"], added["content"])
                added["normalized"] = added["single_word"] = False  # `rename` applies them
        fields["post_processor"] = None  # may name the tokens; nothing is added to a text
        _rename_vocabulary(fields["model"], self._private)
        twin: Tokenizer = Tokenizer.from_str(msgspec.json.encode(fields).decode())
        return twin

    def _is_suspect(self, text: str) -> bool:
        return not self.is_plain(text) or any(self._starts_at_end(text))

    def _positions(self, text: str) -> Iterator[int]:
        """Yield where marks go: after the first character of each special token, or its start."""
        if names := self.spelled_in(text):
            pattern = f"(?={'|'.join(map(re.escape, names))})"
            yield from (found.start() + 1 for found in re.finditer(pattern, text, re.IGNORECASE))
        yield from self._starts_at_end(text)

    def _starts_at_end(self, text: str) -> Iterator[int]:
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start:].casefold() in self._prefixes:
                yield start + 1

    def _broken(self, text: str, mark: str) -> str:
        cuts = [0, *sorted(set(self._positions(text))), len(text)]
        return mark.join(text[i:j] for i, j in pairwise(cuts))


def normalize(tokenizer: Tokenizer, text: str) -> str:
    """Return a text as a tokenizer's normalizer changes it."""
    normalizer = tokenizer.normalizer
    return text if normalizer is None else str(normalizer.normalize_str(text))


def _rename_vocabulary(model: dict[str, Any], names: Mapping[str, str]) -> None:
    vocab = model["vocab"]
    if isinstance(vocab, list):  # Unigram: names and scores
        model["vocab"] = [[names.get(name, name), score] for name, score in vocab]
        return
    model["vocab"] = {names.get(name, name): token for name, token in vocab.items()}
    if "unk_token" in model:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        pairs = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
        model["merges"] = [
            [left, right]
            for left, right in pairs
            if not {left, right, left + right.removeprefix(prefix)} & names.keys()
        ]


def _strings(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from _strings(key)
            yield from _strings(value)
    elif isinstance(data, list | tuple):
        for each in data:
            yield from _strings(each)


def _mapped(data: Any, change: Any) -> Any:
    if isinstance(data, str):
        return change(data)
    if isinstance(data, Mapping):
        return {_mapped(key, change): _mapped(value, change) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_mapped(each, change) for each in data]
    return data


def _mark(texts: str) -> str:
    """Return a character that no text has, not even escaped as in JSON."""
    lower = texts.lower()
    for code in _MARKS:
        if chr(code) not in texts and _escaped(chr(code)) not in lower:
            return chr(code)
    raise UserError("messages must leave one private-use character unused but have all")


def _escaped(mark: str) -> str:
    units = mark.encode("utf-16-be").hex()
    return f"\\u{units[:4]}\\u{units[4:]}"
