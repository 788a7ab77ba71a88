"""Special tokens in text: which strings spell one, and the twin of a tokenizer without them.

In the twin, every special token has a private, random name, also in the model's vocabulary, so
that no text spells it. Everything else is the tokenizer's own: normalizer, segmentation, merges,
and added tokens that are not special.

Special tokens are those of tokenizer.json, the model's EOS and BOS tokens and the unknown token,
whatever tokenizer.json says of them. One without brackets around its name, such as a line break
that ends a turn, is a token of ordinary text and stays one.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise
from typing import Any

import msgspec
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE, Unigram

from yocobit.errors import UserError

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BRACKETED = re.compile(r"<.+>|\[.+\]|\{.+\}", re.DOTALL)

# Private-use planes of Unicode: one character that no text of a conversation has is the mark.
_MARKS = (*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE))
_START = 3  # characters
_PRIVATE_USE = re.compile("[\U000f0000-\U0010fffd]|\\\\ud[89ab]", re.IGNORECASE)


class ControlTokens:
    """The special tokens of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, ids: Collection[int] = ()) -> None:
        """`ids` are the model's EOS and BOS tokens."""
        unknown, self._has_byte_pieces = _fallbacks(tokenizer)
        roles = {token for token in (*ids, *unknown) if _has_brackets(tokenizer.id_to_token(token))}
        known = tokenizer.get_added_tokens_decoder()
        # In the model's vocabulary only: a text may spell them in any way.
        self._hidden = {
            token: str(tokenizer.id_to_token(token)) for token in sorted(roles - known.keys())
        }
        self._is_unknown_special = not unknown.isdisjoint(ids)
        self.needs_twin = bool(self._hidden or self._has_byte_pieces or self._is_unknown_special)
        hidden = {token: AddedToken(name, normalized=False) for token, name in self._hidden.items()}
        added = {**known, **hidden}
        special = {
            token: each
            for token, each in added.items()
            if each.content and (each.special or token in roles)
        }
        self.ids = frozenset(special)
        # First and last character stay: single_word of adjacent tokens depends on them.
        self._private = {
            each.content: each.content[0] + secrets.token_hex(16) + each.content[-1]
            for each in special.values()
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
        longest_first = sorted(added.values(), key=lambda each: -len(each.content))
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
            for each in special.values()
            if each.normalized
        ]
        # Found in a normalized text by the model itself.
        self._in_vocabulary = [
            name
            for name in self._private
            if tokenizer.normalizer is not None and tokenizer.model.token_to_id(name) is not None
        ]
        self._tokenizer = tokenizer

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
        """Whether a text has no added token that is special."""
        return not self.spelled_in(text) and not self._has_normalized(text, self._normalized)

    def is_spelled_in(self, data: Any) -> bool:
        """Whether a string of plain data spells a special token, or a part of one at its end."""
        return any(map(self._is_suspect, _strings(data)))

    def mark(self, data: Any) -> tuple[Any, str] | None:
        """Return plain data whose strings spell no special token, and the mark that breaks them.

        None if the tokenizer itself encodes the data without special tokens.
        """
        if not self.needs_twin and not self.is_spelled_in(data):
            return None
        texts = _strings(data)
        mark = _mark("\n".join(text for text in texts if _PRIVATE_USE.search(text)))
        return _mapped(data, lambda text: self._broken(text, mark)), mark

    def rename(self, text: str, mark: str) -> str:
        """Return a rendered text: special tokens have their private names, marks are removed."""
        pattern = f"(?:{'|'.join(self._added)})(?!{mark})"
        renamed = re.sub(pattern, lambda found: self._private.get(found[0], found[0]), text)
        return renamed.replace(mark, "").replace(_escaped(mark), "")

    def twin(self) -> Tokenizer:
        """Return the tokenizer with private names."""
        if not self._private and not self.needs_twin:
            return self._tokenizer
        fields = msgspec.json.decode(self._tokenizer.to_str())
        model = fields["model"]
        for token, name in self._hidden.items():
            fields["added_tokens"].append(added_token(token, name))
        for added in fields["added_tokens"]:
            if private := self._private.get(added["content"]):
                # `rename` applies single_word.
                plain = added_token(added["id"], private)
                added |= {**plain, "lstrip": added["lstrip"], "rstrip": added["rstrip"]}
        fields["post_processor"] = None  # may name the tokens; nothing is added to a text
        rename_vocabulary(model, self._private)
        if self._is_unknown_special:  # no character becomes it
            if model["type"] != "BPE":
                raise ValueError("its unknown token is also its EOS or BOS token")
            model["unk_token"] = None
        if self._has_byte_pieces:
            fields["pre_tokenizer"] = _splitting_byte_names(fields["pre_tokenizer"])
        twin: Tokenizer = Tokenizer.from_str(msgspec.json.encode(fields).decode())
        return twin

    def _is_suspect(self, text: str) -> bool:
        return (
            not self.is_plain(text)
            or self._has_normalized(text, self._in_vocabulary)
            or any(self._starts_at_end(text))
        )

    def _has_normalized(self, text: str, names: Collection[str]) -> bool:
        if not names:
            return False
        normalized = normalize(self._tokenizer, text)
        return any(name in normalized for name in names)

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


def added_token(token: int, name: str) -> dict[str, Any]:
    """Return the entry of a special token in tokenizer.json."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": name, **flags, "special": True}


class _UnigramFields(msgspec.Struct):
    unk_id: int | None = None
    byte_fallback: bool = False


def _fallbacks(tokenizer: Tokenizer) -> tuple[set[int], bool]:
    """Return the unknown token, if any, and whether the name of a byte token is found in texts."""
    model = tokenizer.model
    if isinstance(model, Unigram):
        fields = msgspec.json.decode(model.__getstate__(), type=_UnigramFields)
        unknown, has_byte_pieces = fields.unk_id, fields.byte_fallback
    else:
        unknown = None if model.unk_token is None else tokenizer.token_to_id(model.unk_token)
        has_byte_pieces = isinstance(model, BPE) and model.byte_fallback and model.ignore_merges
    return set() if unknown is None else {unknown}, has_byte_pieces


def _has_brackets(name: str | None) -> bool:
    return bool(name and _BRACKETED.fullmatch(name) and not BYTE_TOKEN.fullmatch(name))


def _splitting_byte_names(pre_tokenizer: dict[str, Any] | None) -> dict[str, Any]:
    """Return a pre-tokenizer, or none, followed by a split of names such as <0x41>."""
    pattern = {"Regex": "<(?=0x[0-9A-Fa-f]{2}>)"}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    steps = [split] if pre_tokenizer is None else [pre_tokenizer, split]
    return {"type": "Sequence", "pretokenizers": steps}


def rename_vocabulary(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Rename tokens of a model in tokenizer.json; merges of and to them are removed."""
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
