"""Conversion of GGUF tokenizers to tokenizer.json.

Two kinds: byte-level BPE ("gpt2"), with merges in the file, and SentencePiece BPE ("llama"), with
merges that follow from the scores of the tokens they form.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import msgspec

from yocobit.errors import ConfigError, shown
from yocobit.importers.gguf.vocabulary import TokenType, Vocabulary

BLANK = "▁"  # SentencePiece's space
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

Merge = tuple[str, str]


def tokenizer_json(vocabulary: Vocabulary) -> bytes:
    """Return the tokenizer.json of a vocabulary; ConfigError if it cannot be converted exactly."""
    is_bytes = vocabulary.pre_tokenizer is not None
    parts = _byte_level(vocabulary) if is_bytes else _sentencepiece(vocabulary)
    fields = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(_added_tokens(vocabulary)),
        "post_processor": _post_processor(vocabulary),
        **parts,
    }
    return msgspec.json.encode(fields)


def _byte_level(vocabulary: Vocabulary) -> dict[str, Any]:
    pre_tokenizer = vocabulary.pre_tokenizer
    assert pre_tokenizer is not None
    normalizer = pre_tokenizer.normalizer
    model = _bpe(vocabulary, vocabulary.merges) | {"ignore_merges": pre_tokenizer.ignores_merges}
    return {
        "normalizer": {"type": normalizer} if normalizer else None,
        "pre_tokenizer": pre_tokenizer.fields(),
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        },
        "model": model,
    }


def _sentencepiece(vocabulary: Vocabulary) -> dict[str, Any]:
    if vocabulary.flag("remove_extra_whitespaces", False):
        raise ConfigError(
            f"{vocabulary.source}: tokenizer.ggml.remove_extra_whitespaces must be false but is "
            "true; give the directory of a tokenizer.json with --tokenizer DIR"
        )
    has_prefix = vocabulary.flag("add_space_prefix", True)
    prefix = [{"type": "Prepend", "prepend": BLANK}] if has_prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if has_prefix else []
    unknown = vocabulary.id_of("unknown")
    model = _bpe(vocabulary, list(_merges(vocabulary))) | {
        "unk_token": None if unknown is None else vocabulary.tokens[unknown],
        "fuse_unk": True,
        "byte_fallback": _has_bytes(vocabulary),
    }
    to_blank = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
    to_space = {"type": "Replace", "pattern": {"String": BLANK}, "content": " "}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, to_blank]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [to_space, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
        "model": model,
    }


def _bpe(vocabulary: Vocabulary, merges: list[Merge]) -> dict[str, Any]:
    return {"type": "BPE", "vocab": vocabulary.ids, "merges": merges}


def _added_tokens(vocabulary: Vocabulary) -> Iterator[dict[str, Any]]:
    """Yield the tokens that are matched before pre-tokenization."""
    for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if i in vocabulary.special or kind == TokenType.USER_DEFINED:
            yield {
                "id": i,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": i in vocabulary.special,
            }


def _post_processor(vocabulary: Vocabulary) -> dict[str, Any] | None:
    """Return the template that adds BOS and EOS tokens for other readers of the file."""
    ends = vocabulary.flag("add_eos_token", False)
    start, end = vocabulary.bos_id, vocabulary.id_of("eos") if ends else None
    if start is None and end is None:
        return None

    def piece(token: int | None, kind: int) -> list[dict[str, Any]]:
        name = None if token is None else vocabulary.tokens[token]
        return [] if name is None else [{"SpecialToken": {"id": name, "type_id": kind}}]

    def text(name: str, kind: int) -> list[dict[str, Any]]:
        sequence = {"Sequence": {"id": name, "type_id": kind}}
        return [*piece(start, kind), sequence, *piece(end, kind)]

    names = {vocabulary.tokens[token]: token for token in (start, end) if token is not None}
    return {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": [*text("A", 0), *text("B", 1)],
        "special_tokens": {
            name: {"id": name, "ids": [token], "tokens": [name]} for name, token in names.items()
        },
    }


def _has_bytes(vocabulary: Vocabulary) -> bool:
    """Whether a character without a token is encoded as the tokens of its bytes."""
    kinds = zip(vocabulary.tokens, vocabulary.types, strict=True)
    names = {token for token, kind in kinds if kind == TokenType.BYTE}
    if names and names != set(BYTES):
        wrong = sorted(names ^ set(BYTES))[0]
        raise ConfigError(
            f"{vocabulary.source}: tokens of bytes must be <0x00> to <0xFF>, each once, but "
            f"{shown(wrong, 80)} is {'missing' if wrong in BYTES else 'one of them'}"
        )
    return bool(names)


def _merges(vocabulary: Vocabulary) -> Iterator[Merge]:
    """Yield the merges that a SentencePiece vocabulary implies, by priority.

    SentencePiece merges the neighbours that form the token with the best score; ties are broken
    from the left. Merges of one score are ordered by the lengths of their parts, the longest left
    part first. A run of one character then grows from its left end, as in SentencePiece: Llama's
    runs of blanks have one score. Other merges of one score are rejected if their order matters.
    """
    types, scores = vocabulary.types, vocabulary.scores
    formable = {
        token: scores[i]
        for i, token in enumerate(vocabulary.tokens)
        if types[i] in (TokenType.NORMAL, TokenType.UNDEFINED)
    }
    _check_characters(vocabulary, formable)
    merges = [
        (token[:i], token[i:])
        for token in formable
        for i in range(1, len(token))
        if token[:i] in formable and token[i:] in formable
    ]
    merges.sort(key=lambda m: (-formable[m[0] + m[1]], -len(m[0]), -len(m[1])))
    for _, group in groupby(merges, key=lambda m: formable[m[0] + m[1]]):
        tied = list(group)
        _check_order(vocabulary, tied)
        yield from tied


def _check_characters(vocabulary: Vocabulary, formable: Iterable[str]) -> None:
    """Raise ConfigError for a character without a token of its own: merges start from it."""
    characters = {token for token in formable if len(token) == 1}
    for token in formable:
        if len(token) > 1 and (missing := set(token) - characters):
            raise ConfigError(
                f"{vocabulary.source}: token {shown(token, 80)} needs a token for its character "
                f"{shown(min(missing))}, which is missing; give the directory of a tokenizer.json "
                "with --tokenizer DIR"
            )


def _check_order(vocabulary: Vocabulary, tied: list[Merge]) -> None:
    """Raise ConfigError if merges of one score can overlap, unless both form runs."""
    starts: dict[str, set[str]] = {}  # by left part, the tokens that merges form
    mixed: dict[str, set[str]] = {}  # those that are not runs
    for left, right in tied:
        token = left + right
        starts.setdefault(left, set()).add(token)
        if not _is_run(token):
            mixed.setdefault(left, set()).add(token)
    for left, right in tied:
        token = left + right
        following = (mixed if _is_run(token) else starts).get(right, ())
        if other := next((each for each in following if each != token), None):
            raise ConfigError(
                f"{vocabulary.source}: scores must order the merges but {shown(token, 80)} and "
                f"{shown(other, 80)} have the same one; give the directory of a tokenizer.json "
                "with --tokenizer DIR"
            )


def _is_run(token: str) -> bool:
    return token == token[0] * len(token)
