"""Tokenizer, chat template and EOS tokens of a GGUF file, as the files of a packed model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from yocobit.errors import ConfigError, shown
from yocobit.importers.checkpoint import with_tokenizer
from yocobit.importers.gguf.tokenizer import tokenizer_json
from yocobit.importers.gguf.vocabulary import Vocabulary, read_vocabulary
from yocobit.packing.text_files import TextFiles, with_added_bos
from yocobit.text import GenerationConfig, parse_tokenizer

_TEMPLATE = "tokenizer.chat_template"
# llama.cpp's keys of sampling parameters.
SAMPLING_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


def read_text(
    metadata: Mapping[str, Any], source: Path, vocab_size: int
) -> tuple[TextFiles, list[str]]:
    """Return tokenizer, generation defaults and chat template, and warnings.

    `metadata` has lists of strings and NumPy arrays of numbers. ConfigError, naming `source`, if it
    is invalid, or if its tokenizer cannot be converted.
    """
    vocabulary = read_vocabulary(metadata, source, vocab_size)
    if vocabulary is None:
        warning = "the file holds no tokenizer; name the directory of one with --tokenizer DIR"
        sampling = _sampling(metadata, source)
        GenerationConfig.of(sampling, source, vocab_size)
        return TextFiles(None, sampling, _template(metadata, source, {})), [warning]
    tokenizer = tokenizer_json(vocabulary)
    subject = f"{source}: the converted tokenizer"
    parsed = parse_tokenizer(tokenizer.decode(), subject, vocab_size)
    generation = with_added_bos(_generation(vocabulary), parsed, subject)
    generation |= _sampling(metadata, source)
    GenerationConfig.of(generation, source, vocab_size)
    files = TextFiles(tokenizer, generation, _template(metadata, source, vocabulary.names))
    return files, vocabulary.warnings


def read_text_with(
    metadata: Mapping[str, Any], source: Path, vocab_size: int, directory: Path
) -> TextFiles:
    """Return the text files with the tokenizer of a directory instead of the file's.

    The file's vocabulary is not read: it may be the reason for another tokenizer.
    """
    ids = {
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
    }
    own = {name: value for name, value in ids.items() if value is not None}
    own |= _sampling(metadata, source)
    GenerationConfig.of(own, source, vocab_size)
    files = TextFiles(None, own, _template(metadata, source, {}))
    return with_tokenizer(files, directory, vocab_size)


def _generation(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the ids of end and padding tokens."""
    ids = {
        "eos_token_id": vocabulary.end_ids or None,
        "pad_token_id": vocabulary.id_of("padding"),
    }
    return {name: value for name, value in ids.items() if value is not None}


def _sampling(metadata: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """Return the sampling parameters that the file sets; as in llama.cpp, top_k -1 keeps all."""
    found: dict[str, Any] = {}
    for name, key in SAMPLING_KEYS.items():
        value = metadata.get(key)
        if value is None:
            continue
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ConfigError(f"{source}: {key} must be a finite number but is {shown(value, 80)}")
        found[name] = max(0, int(value)) if name == "top_k" else _shortest(value)
    return found


def _shortest(value: float) -> float:
    """Return the shortest decimal of a number that was written as a float32, such as 0.8."""
    if abs(value) > float(np.finfo(np.float32).max) or float(np.float32(value)) != value:
        return float(value)
    return float(str(np.float32(value)))


def _template(metadata: Mapping[str, Any], source: Path, names: Mapping[str, str]) -> bytes | None:
    """Return the chat template, extended by the names of the special tokens that it reads."""
    from yocobit.text.chat_template import with_token_names  # imports Jinja

    text = metadata.get(_TEMPLATE, "")
    if not isinstance(text, str):
        raise ConfigError(f"{source}: {_TEMPLATE} must be a string but is {shown(text, 80)}")
    if not text:
        return None
    return with_token_names(text, names, f"{source}: {_TEMPLATE}")
