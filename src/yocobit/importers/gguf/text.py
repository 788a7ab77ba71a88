"""Tokenizer, chat template and end tokens of a GGUF file, as the files of a packed model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yocobit.importers.gguf.container import GGUFFile
from yocobit.importers.gguf.tokenizer import tokenizer_json
from yocobit.importers.gguf.vocabulary import Vocabulary, read_vocabulary
from yocobit.packing.format import TOKENIZER
from yocobit.packing.text_files import TextFiles, read_text_files
from yocobit.text import GenerationConfig, parse_tokenizer

_TEMPLATE = "tokenizer.chat_template"


def read_text(file: GGUFFile, vocab_size: int) -> tuple[TextFiles, list[str]]:
    """Return tokenizer, generation defaults and chat template, and warnings."""
    vocabulary = read_vocabulary(file.metadata, file.path, vocab_size)
    if vocabulary is None:
        return TextFiles(None, {}, _template(file, {})), []
    tokenizer = tokenizer_json(vocabulary)
    parse_tokenizer(tokenizer.decode(), file.path, vocab_size)
    generation = _generation(vocabulary)
    GenerationConfig.of(generation, file.path, vocab_size)
    files = TextFiles(tokenizer, generation, _template(file, vocabulary.names))
    return files, vocabulary.warnings


def read_text_with(file: GGUFFile, vocab_size: int, directory: Path) -> TextFiles:
    """Return the same with the tokenizer of a directory; the file's is not read."""
    other = read_text_files(directory, vocab_size)
    if other.tokenizer is None:
        raise file.error(f"{directory} holds no {TOKENIZER}; name a directory with one")
    return other if other.template else other._replace(template=_template(file, {}))


def _generation(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the ids of start, end and padding tokens."""
    ids = {
        "bos_token_id": vocabulary.bos_id,
        "eos_token_id": vocabulary.end_ids or None,
        "pad_token_id": vocabulary.id_of("padding"),
    }
    return {name: value for name, value in ids.items() if value is not None}


def _template(file: GGUFFile, names: Mapping[str, str]) -> bytes | None:
    """Return the chat template; it sets the names of special tokens itself."""
    from yocobit.text.chat_template import ChatTemplate, with_token_names  # imports Jinja

    text = file.metadata.get(_TEMPLATE)
    if text is None:
        return None
    if not isinstance(text, str):
        raise file.error(f"{_TEMPLATE} must be a string but is of type {type(text).__name__}")
    ChatTemplate(text, f"{file.path}: {_TEMPLATE}")  # checks it
    return with_token_names(text.encode(), names)
