"""The vocabulary of a GGUF file: tokens, their types, merges or scores, and special tokens.

All of `tokenizer.ggml.*` is checked here; tokenizer.py converts it. Rules that the metadata does
not state, such as which tokens end a text, are those of llama.cpp (src/llama-vocab.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from yocobit.errors import ConfigError, shown
from yocobit.importers.gguf.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer, identify

_PREFIX = "tokenizer.ggml."
_REMEDY = "give the directory of a tokenizer.json with --tokenizer DIR"
_MAX_LENGTH = 1024  # characters of a token; the longest published ones have 512 spaces
BPE, SENTENCEPIECE = "gpt2", "llama"  # names of GGUF
_NO_TOKENIZER = ("none", "no_vocab")

# Tokens that end a text or a turn, by their names, as files rarely list more than one of them.
_END_NAMES = frozenset(
    {
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>",
        "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
        "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<｜end▁of▁sentence｜>",
        # Where a file or a repository ends, in code that is filled in.
        "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>",
        "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>",
    }
)  # fmt: skip
_END_KEYS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
# The variables of chat templates, and the keys of their tokens.
_NAMED = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",  # as the format spells it
    "pad_token": "padding",
    "cls_token": "cls",
    "mask_token": "mask",
}
_SENTENCEPIECE_IDS = {"unknown": 0, "bos": 1, "eos": 2}  # unless the file says otherwise


class TokenType(IntEnum):
    """The values of `tokenizer.ggml.token_type`."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """A checked vocabulary; `merges` and `pre_tokenizer` of BPE, `scores` of SentencePiece."""

    source: Path
    metadata: Mapping[str, Any]
    tokens: list[str]
    types: list[int]
    merges: list[tuple[str, str]]
    scores: list[float]
    pre_tokenizer: PreTokenizer | None
    warnings: list[str]

    @cached_property
    def ids(self) -> dict[str, int]:
        """Ids by token."""
        return {token: i for i, token in enumerate(self.tokens)}

    @cached_property
    def special(self) -> frozenset[int]:
        """Control tokens and the like: text is never encoded as these."""
        kinds = (TokenType.CONTROL, TokenType.UNKNOWN)
        typed = {i for i, kind in enumerate(self.types) if kind in kinds}
        named = {self.ids[name] for name in _END_NAMES & self.ids.keys()}
        listed = {i for key in ("bos", *_END_KEYS) if (i := self.id_of(key)) is not None}
        return frozenset(typed | {i for i in named | listed if not self._is_text(i)})

    @property
    def bos_id(self) -> int | None:
        """The token before each text; None without one."""
        default = self.pre_tokenizer is None or self.pre_tokenizer.adds_bos
        return self.id_of("bos") if self.flag("add_bos_token", default) else None

    @property
    def end_ids(self) -> list[int]:
        """Tokens that end a text or a turn; the EOS token of the file is the first."""
        named = {self.ids[name] for name in _END_NAMES & self.ids.keys()}
        listed = [self.id_of(key) for key in _END_KEYS]
        ids = [*listed, *sorted(named & self.special)]
        return list(dict.fromkeys(i for i in ids if i is not None))

    @property
    def names(self) -> dict[str, str]:
        """The special tokens that chat templates read, by variable."""
        ids = {name: self.id_of(key) for name, key in _NAMED.items()}
        return {name: self.tokens[i] for name, i in ids.items() if i is not None}

    def id_of(self, role: str) -> int | None:
        """Return the id of a special token such as "bos"; None if the file has none."""
        key = f"{_PREFIX}{role}_token_id"
        default = _SENTENCEPIECE_IDS.get(role) if self.pre_tokenizer is None else None
        value = self.metadata.get(key, default)
        if value is None:
            return None
        if type(value) is not int:
            raise _error(self.source, f"{key} must be an integer but is {shown(value)}")
        if 0 <= value < len(self.tokens):
            return value
        if role in ("bos", *_END_KEYS) and key in self.metadata:
            raise _error(
                self.source,
                f"{key} must be below the number of tokens, {len(self.tokens)}, but is {value}",
            )
        return None  # without such a token, converters write -1

    def flag(self, name: str, default: bool) -> bool:
        """Return a bool of the metadata."""
        value = self.metadata.get(_PREFIX + name, default)
        if not isinstance(value, bool):
            raise _error(self.source, f"{_PREFIX}{name} must be a bool but is {shown(value)}")
        return value

    def _is_text(self, i: int) -> bool:
        """Whether text is encoded as this token: a character, a byte, or formed by merges."""
        token, kind = self.tokens[i], self.types[i]
        if kind not in (TokenType.NORMAL, TokenType.UNDEFINED):
            return kind == TokenType.BYTE
        if self.pre_tokenizer is not None:
            return len(token) == 1 or token in self._formed
        splits = ((token[:n], token[n:]) for n in range(1, len(token)))
        return len(token) == 1 or any({left, right} <= self.ids.keys() for left, right in splits)

    @cached_property
    def _formed(self) -> frozenset[str]:
        return frozenset(left + right for left, right in self.merges)


def read_vocabulary(
    metadata: Mapping[str, Any], source: Path, vocab_size: int
) -> Vocabulary | None:
    """Return the vocabulary in the metadata of a GGUF file; None if it has none.

    ConfigError for an unsupported kind of tokenizer or pre-tokenizer, and invalid metadata.
    """
    model = _string(metadata, f"{_PREFIX}model", "none", source)
    if model in _NO_TOKENIZER:
        return None
    if model not in (BPE, SENTENCEPIECE):
        raise _error(
            source,
            f"{_PREFIX}model must be '{BPE}' (byte-level BPE) or '{SENTENCEPIECE}' (SentencePiece) "
            f"but is {shown(model)}; {_REMEDY}",
        )
    tokens = _tokens(metadata, source, vocab_size)
    types = _types(metadata, source, len(tokens))
    merges: list[tuple[str, str]] = []
    scores: list[float] = []
    warnings: list[str] = []
    pre_tokenizer = None
    if model == BPE:
        lines = _strings(metadata, "merges", source)
        pre_tokenizer = _pre_tokenizer(metadata, source, lines, warnings)
        merges = _merges(lines, source, tokens)
    else:
        scores = _scores(metadata, source, tokens)
    return Vocabulary(source, metadata, tokens, types, merges, scores, pre_tokenizer, warnings)


def _tokens(metadata: Mapping[str, Any], source: Path, vocab_size: int) -> list[str]:
    named = _strings(metadata, "tokens", source)
    if not 0 < len(named) <= vocab_size:
        raise _error(
            source,
            f"{_PREFIX}tokens must have 1 to {vocab_size} tokens, as the embedding has rows, but "
            f"has {len(named)}",
        )
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(named)]  # as llama.cpp names them
    seen: dict[str, int] = {}
    for i, token in enumerate(tokens):
        if (first := seen.setdefault(token, i)) != i:
            raise _error(
                source, f"tokens must differ but {first} and {i} are both {shown(token, 80)}"
            )
        if len(token) > _MAX_LENGTH:
            raise _error(
                source,
                f"a token must have at most {_MAX_LENGTH} characters but token {i} has "
                f"{len(token):,}",
            )
    return tokens


def _types(metadata: Mapping[str, Any], source: Path, n_tokens: int) -> list[int]:
    if f"{_PREFIX}token_type" not in metadata:
        return [TokenType.NORMAL] * n_tokens
    types = _numbers(metadata, "token_type", "iu", source, n_tokens)
    wrong = (types < min(TokenType)) | (types > max(TokenType))
    if wrong.any():
        i = int(wrong.argmax())
        raise _error(
            source,
            f"{_PREFIX}token_type must be 0 to {max(TokenType)} but is {types[i]} for token {i}",
        )
    return [int(kind) for kind in types.tolist()]


def _scores(metadata: Mapping[str, Any], source: Path, tokens: Sequence[str]) -> list[float]:
    scores = _numbers(metadata, "scores", "fiu", source, len(tokens))
    if not np.isfinite(scores).all():
        i = int((~np.isfinite(scores)).argmax())
        raise _error(
            source,
            f"{_PREFIX}scores must be finite but token {i}, {shown(tokens[i], 80)}, has "
            f"{scores[i]}",
        )
    return [float(score) for score in scores.tolist()]


def _merges(lines: Sequence[str], source: Path, tokens: Sequence[str]) -> list[tuple[str, str]]:
    """Return the merges without duplicates; the first one counts."""
    known = set(tokens)
    merges: dict[tuple[str, str], None] = {}
    for i, line in enumerate(lines):
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise _error(
                source,
                f"a merge must be two tokens with a space between them but merge {i} is "
                f"{shown(line, 80)}",
            )
        for token in (left, right, left + right):
            if token not in known:
                raise _error(
                    source,
                    f"merge {i}, {shown(line, 80)}, needs the token {shown(token, 80)}, which is "
                    "missing",
                )
        merges[left, right] = None
    return list(merges)


def _pre_tokenizer(
    metadata: Mapping[str, Any], source: Path, merges: Sequence[str], warnings: list[str]
) -> PreTokenizer:
    """Return the pre-tokenizer that a file names, or that of a known vocabulary."""
    name = _string(metadata, f"{_PREFIX}pre", "default", source)
    if name == "default":
        name = identify(merges) or name
    if name not in PRE_TOKENIZERS:
        raise _error(
            source,
            f"{_PREFIX}pre must be one of {', '.join(PRE_TOKENIZERS)} but is {shown(name, 80)}; "
            f"{_REMEDY}",
        )
    if name == "default":
        warnings.append(
            f"the file does not name its pre-tokenizer ({_PREFIX}pre): texts are split as "
            f"llama.cpp does then, which may not be as in training; {_REMEDY}"
        )
    return PRE_TOKENIZERS[name]


def _string(metadata: Mapping[str, Any], key: str, default: str, source: Path) -> str:
    value = metadata.get(key, default)
    if not isinstance(value, str):
        raise _error(source, f"{key} must be a string but is {shown(value, 80)}")
    return value


def _strings(metadata: Mapping[str, Any], name: str, source: Path) -> list[str]:
    values = metadata.get(_PREFIX + name)
    if values is None:
        raise _error(source, f"key '{_PREFIX}{name}' is missing; {_REMEDY}")
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise _error(source, f"{_PREFIX}{name} must be an array of strings")
    return values


def _numbers(
    metadata: Mapping[str, Any], name: str, kinds: str, source: Path, n: int
) -> np.ndarray[Any, Any]:
    """Return an array of numbers, one per token; `kinds` are those of NumPy."""
    values = metadata.get(_PREFIX + name)
    if values is None:
        raise _error(source, f"key '{_PREFIX}{name}' is missing; {_REMEDY}")
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in kinds:
        raise _error(source, f"{_PREFIX}{name} must be an array of numbers")
    if len(values) != n:
        raise _error(
            source, f"{_PREFIX}{name} must have one value per token, {n}, but has {len(values)}"
        )
    return values


def _error(source: Path, message: str) -> ConfigError:
    return ConfigError(f"{source}: {message}")
