"""Tokenizer, chat template and end tokens of a GGUF file, as the files of a packed model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yocobit.errors import ConfigError, shown
from yocobit.importers.checkpoint import with_tokenizer
from yocobit.importers.gguf.tokenizer import tokenizer_json
from yocobit.importers.gguf.vocabulary import Vocabulary, read_vocabulary
from yocobit.packing.text_files import TextFiles, with_added_bos
from yocobit.text import GenerationConfig, parse_tokenizer

_TEMPLATE = "tokenizer.chat_template"


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
        return TextFiles(None, {}, _template(metadata, source, {})), [warning]
    tokenizer = tokenizer_json(vocabulary)
    subject = f"{source}: the converted tokenizer"
    parsed = parse_tokenizer(tokenizer.decode(), subject, vocab_size)
    generation = with_added_bos(_generation(vocabulary), parsed, subject)
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


def _template(metadata: Mapping[str, Any], source: Path, names: Mapping[str, str]) -> bytes | None:
    """Return the chat template, extended by the names of the special tokens that it reads."""
    from yocobit.text.chat_template import ChatTemplate, with_token_names  # imports Jinja

    text = metadata.get(_TEMPLATE, "")
    if not isinstance(text, str):
        raise ConfigError(f"{source}: {_TEMPLATE} must be a string but is {shown(text, 80)}")
    if not text:
        return None
    ChatTemplate(text, f"{source}: {_TEMPLATE}")  # checks it
    return with_token_names(text.encode(), names)
