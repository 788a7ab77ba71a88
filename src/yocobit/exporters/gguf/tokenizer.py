"""tokenizer.json as the metadata of a GGUF file: the inverse of importers/gguf/tokenizer.py.

Byte-level BPE with a pre-tokenizer that llama.cpp knows by name, and SentencePiece
(sentencepiece.py); all others are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from yocobit.errors import ConfigError, shown
from yocobit.exporters.gguf.sentencepiece import is_sentencepiece, sentencepiece_metadata
from yocobit.importers.gguf.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from yocobit.importers.gguf.vocabulary import BPE, TokenType
from yocobit.text.generation_config import GenerationConfig

_PREFIX = "tokenizer.ggml."
# The patterns of pre-tokenizers other than Split.
_OF_BYTE_LEVEL = PRE_TOKENIZERS["gpt-2"].patterns
_DIGIT = r"\p{N}"
_FIRST_UNASSIGNED = "\U00040000"
_UNSUPPORTED = ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "unk_token")
_END_KEYS = ("eos", "eot", "eom")
MAX_END_TOKENS = len(_END_KEYS)


def tokenizer_metadata(
    fields: Mapping[str, Any], generation: GenerationConfig, vocab_size: int, source: Path
) -> dict[str, Any]:
    """Return the metadata of the content of a tokenizer.json; ConfigError if GGUF lacks a part.

    Of the EOS tokens, the first MAX_END_TOKENS are kept.
    """
    model = fields["model"]
    is_pieces = is_sentencepiece(fields)
    unsupported = _UNSUPPORTED[:2] if is_pieces else _UNSUPPORTED
    if model.get("type") != "BPE" or any(model.get(key) for key in unsupported):
        raise _error(source, "must be byte-level BPE or SentencePiece BPE", model.get("type"))
    tokens, types = _tokens(fields, vocab_size, source)
    if is_pieces:
        metadata = sentencepiece_metadata(fields, tokens, types, source)
    else:
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        metadata = {"model": BPE, "pre": _pre_tokenizer(fields, source), "merges": merges}
    metadata |= {
        "tokens": tokens,
        "token_type": np.array(types, dtype="<i4"),
        "add_bos_token": generation.bos_token_id is not None,
        "add_eos_token": False,
    }
    if generation.bos_token_id is not None:
        metadata["bos_token_id"] = generation.bos_token_id
    for key, token in zip(_END_KEYS, _end_tokens(generation), strict=False):
        metadata[f"{key}_token_id"] = token
    return {_PREFIX + key: value for key, value in metadata.items()}


def _end_tokens(generation: GenerationConfig) -> list[int]:
    """Return the EOS tokens in the order of the file."""
    end = generation.eos_token_id
    return [] if end is None else [end] if isinstance(end, int) else list(end)


def _tokens(
    fields: Mapping[str, Any], vocab_size: int, source: Path
) -> tuple[list[str], list[TokenType]]:
    """Return token texts and types; rows of the embedding without a token are unused."""
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [TokenType.UNUSED] * vocab_size
    for text, i in fields["model"]["vocab"].items():
        tokens[i], types[i] = text, TokenType.NORMAL
    for added in fields.get("added_tokens") or []:
        i = added["id"]
        if added.get("single_word") or added.get("lstrip") or added.get("rstrip"):
            raise _error(
                source,
                "added tokens must not have single_word, lstrip or rstrip, which GGUF lacks,",
                added["content"],
            )
        tokens[i] = added["content"]
        types[i] = TokenType.CONTROL if added.get("special") else TokenType.USER_DEFINED
    return tokens, types


def _pre_tokenizer(fields: Mapping[str, Any], source: Path) -> str:
    """Return llama.cpp's name of the pre-tokenizer."""
    own = PreTokenizer(
        _patterns(fields.get("pre_tokenizer"), source),
        normalizer=_normalizer(fields.get("normalizer")),
        ignores_merges=bool(fields["model"].get("ignore_merges")),
    )
    for name, known in PRE_TOKENIZERS.items():
        if (known.patterns, known.normalizer, known.ignores_merges) == (
            own.patterns,
            own.normalizer,
            own.ignores_merges,
        ):
            return name
    raise _error(
        source,
        "pre_tokenizer must be one that llama.cpp has by name, as a GGUF file has no place for "
        "regular expressions,",
        own,
    )


def _normalizer(normalizer: Any) -> str | None:
    """Return the type of the normalizer, without what our importer adds for missing bytes."""
    steps = normalizer or {}
    steps = steps["normalizers"] if steps.get("type") == "Sequence" else [steps]
    types = [step["type"] for step in steps if step and not _is_substitute(step)]
    return " and ".join(types) or None


def _is_substitute(step: Mapping[str, Any]) -> bool:
    """Whether a step replaces unassigned and private characters only, by "?"."""
    if step.get("type") != "Replace" or step.get("content") != "?":
        return False
    pattern = step["pattern"].get("Regex", "")
    bounds = re.fullmatch(r"\[((?:.-.)+)\]", pattern, re.DOTALL)
    return bounds is not None and min(bounds[1].replace("-", "")) >= _FIRST_UNASSIGNED


def _patterns(pre_tokenizer: Any, source: Path) -> tuple[str, ...]:
    """Return the regular expressions that split a text one after the other."""
    steps = pre_tokenizer or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    patterns: list[str] = []
    for step in steps:
        kind = step.get("type")
        is_isolated = step.get("behavior") == "Isolated" and not step.get("invert")
        if kind == "Split" and is_isolated and "Regex" in step["pattern"]:
            patterns.append(step["pattern"]["Regex"])
        elif kind == "Digits" and step.get("individual_digits"):
            patterns.append(_DIGIT)
        elif kind == "ByteLevel" and not step.get("add_prefix_space") and step is steps[-1]:
            patterns += _OF_BYTE_LEVEL if step.get("use_regex", True) else ()
            return tuple(patterns)
        else:
            break
    raise _error(source, "pre_tokenizer must be regular expressions and ByteLevel", pre_tokenizer)


def _error(source: Path, rule: str, value: Any) -> ConfigError:
    return ConfigError(
        f"{source}: {rule} but is {shown(value, 200)}; --to hf exports any tokenizer"
    )
