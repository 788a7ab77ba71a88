"""SentencePiece tokenizers: tokenizer.json of BPE with blanks as "▁" as the model "llama" of GGUF.

A tokenizer.json lists merges; llama.cpp merges the neighbours that form the token with the highest
score, the leftmost first. Both encode the same if every split of a token is a merge and the merges
are ordered by the tokens they form, as in files that were converted from SentencePiece.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yocobit.errors import ConfigError, shown
from yocobit.importers.gguf.tokenizer import BLANK, BYTES, Merge
from yocobit.importers.gguf.vocabulary import SENTENCEPIECE, TokenType

_SPACE = {"String": " "}
_TO_BLANK = {"type": "Replace", "pattern": _SPACE, "content": BLANK}
_PREPEND = {"type": "Prepend", "prepend": BLANK}
_NOTES = {
    "always": "texts that start with a space",
    "first": "texts that start with a space, or follow a special token,",
}


def is_sentencepiece(fields: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json is of this kind: characters without a token are bytes."""
    model = fields["model"]
    return model.get("type") == "BPE" and bool(model.get("byte_fallback"))


def sentencepiece_metadata(
    fields: Mapping[str, Any], tokens: Sequence[str], types: list[TokenType], source: Path
) -> dict[str, Any]:
    """Return the metadata of a tokenizer that differ from those of byte-level BPE.

    Sets the `types` of bytes and of the unknown token. ConfigError if llama.cpp encodes otherwise.
    """
    model, ids = fields["model"], {token: i for i, token in enumerate(tokens)}
    if model.get("ignore_merges"):
        raise _error(source, "model.ignore_merges must be false", "is true")
    if missing := [token for token in BYTES if token not in ids]:
        raise _error(source, "model.vocab must have <0x00> to <0xFF>", f"lacks {missing[0]}")
    for token in BYTES:
        types[ids[token]] = TokenType.BYTE
    metadata: dict[str, Any] = {
        "model": SENTENCEPIECE,
        "pre": "default",
        "add_space_prefix": _prefix(fields, source) != "never",
    }
    if (unknown := model.get("unk_token")) in ids:
        types[ids[unknown]] = TokenType.UNKNOWN
        metadata["unknown_token_id"] = ids[unknown]
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    scores = _scores([(left, right) for left, right in pairs], tokens, types, source)
    metadata["scores"] = np.array(scores, dtype="<f4")
    return metadata


def differences(fields: Mapping[str, Any], source: Path) -> Iterator[str]:
    """Yield a line for the texts that llama.cpp encodes otherwise."""
    texts = _NOTES.get(_prefix(fields, source)) if is_sentencepiece(fields) else None
    if texts:
        yield f"llama.cpp encodes {texts} with a space in front, which the tokenizer does not add"


def _prefix(fields: Mapping[str, Any], source: Path) -> str:
    """Return which texts get a space in front; "all" as in llama.cpp, or as Metaspace names it."""
    normalizer: dict[str, Any] = fields.get("normalizer") or {}
    splitter: dict[str, Any] = fields.get("pre_tokenizer") or {}
    steps = [normalizer] if normalizer else []
    if normalizer.get("type") == "Sequence":
        steps = normalizer["normalizers"]
    if steps in ([_TO_BLANK], [_PREPEND, _TO_BLANK]):
        # Gemma's pre-tokenizer splits at spaces, of which none is left.
        if not splitter or (splitter["type"], splitter.get("pattern")) == ("Split", _SPACE):
            return "all" if _PREPEND in steps else "never"
    elif not steps and splitter.get("type") == "Metaspace":
        scheme = splitter.get("prepend_scheme", "always")
        if splitter["replacement"] == BLANK and not splitter.get("split", True):
            return str(scheme)
    rule = f"normalizer and pre_tokenizer must replace spaces by '{BLANK}' and split nothing"
    raise _error(source, rule, f"are {shown([normalizer, splitter], 200)}")


def _scores(
    merges: Sequence[Merge], tokens: Sequence[str], types: Sequence[TokenType], source: Path
) -> list[float]:
    """Return a score for each token that order the merges as the list does.

    Tokens whose merges are mixed have one score: runs of one character, the longest left part
    first. ConfigError if no scores do.
    """
    formable = {
        token for token, kind in zip(tokens, types, strict=True) if kind is TokenType.NORMAL
    }
    splits = {
        (token[:i], token[i:])
        for token in formable
        for i in range(1, len(token))
        if token[:i] in formable and token[i:] in formable
    }
    if wrong := splits.symmetric_difference(merges):
        rule = "model.merges must be all splits of a token into two tokens"
        first = min(wrong)
        verb = "lack" if first in splits else "have"
        raise _error(source, rule, f"{verb} {shown(' '.join(first), 80)}")
    last = {left + right: i for i, (left, right) in enumerate(merges)}
    scores: dict[str, float] = {}
    group: list[Merge] = []
    end = -1
    for i, merge in enumerate(merges):
        if i > end:
            group = []
        group.append(merge)
        end = max(end, last["".join(merge)])
        scores["".join(merge)] = scores.get("".join(group[0]), -float(len(scores)))
        if i == end and not _is_of_one_score(group):
            rule = "model.merges must be ordered by the tokens they form"
            raise _error(source, rule, f"are not from {shown(' '.join(group[0]), 80)} on")
    lowest = -float(len(scores))
    return [scores.get(token, lowest) for token in tokens]


def _is_of_one_score(group: Sequence[Merge]) -> bool:
    """Whether merges form one token, or runs of one character in the order of SentencePiece."""
    if len({left + right for left, right in group}) == 1:
        return True
    lengths = [(-len(left), -len(right)) for left, right in group]
    return len({c for left, right in group for c in left + right}) == 1 and (
        lengths == sorted(lengths)
    )


def _error(source: Path, rule: str, found: str) -> ConfigError:
    return ConfigError(f"{source}: {rule} for llama.cpp but {found}; --to hf exports any tokenizer")
