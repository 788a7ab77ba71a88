"""The text files of a transformers directory that a packed model keeps.

These are the tokenizer, the chat template with the special tokens that it reads, EOS tokens, stop
strings and sampling defaults. pack() and the importers read them here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from yocobit.errors import ConfigError, shown
from yocobit.packing.file_format import CHAT_TEMPLATE, CONFIG, GENERATION, TOKENIZER
from yocobit.reading import read_bytes, read_json, read_text
from yocobit.text import (
    GenerationConfig,
    added_tokens,
    parse_tokenizer,
    read_generation_config,
)
from yocobit.text.generation_config import without_unknown_tokens

TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKEN_NAMES = "special_tokens_map.json"  # of earlier versions of transformers
_TOKENS = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_KEPT = (
    *_TOKEN_IDS,
    "stop_strings",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "max_new_tokens",
)


class TextFiles(NamedTuple):
    """Contents of the files of a packed model."""

    tokenizer: bytes | None
    generation: dict[str, Any]
    template: bytes | None


def read_text_files(source: Path, vocab_size: int) -> TextFiles:
    """Read the files of a transformers directory; ConfigError if one is invalid.

    `generation` has the keys that are set. An EOS token that only the tokenizer names is set too.
    The BOS token is that of with_added_bos.
    """
    tokenizer_file = source / TOKENIZER
    content = read_bytes(tokenizer_file) if tokenizer_file.is_file() else None
    tokenizer = None
    if content is not None:
        tokenizer = parse_tokenizer(read_text(tokenizer_file), tokenizer_file, vocab_size)
    names_file = source / TOKENIZER_CONFIG
    fields = _read(source / _TOKEN_NAMES) | _read(names_file)
    names = _token_names(fields, names_file)
    generation = _generation(source, vocab_size)
    if tokenizer is not None:
        if "eos_token_id" not in generation and "eos_token" in names:
            end = tokenizer.token_to_id(names["eos_token"])
            generation |= {} if end is None else {"eos_token_id": end}
        generation = with_added_bos(generation, tokenizer, tokenizer_file)
        GenerationConfig.of(generation, tokenizer_file, vocab_size)
        bos = generation.get("bos_token_id")
        if bos is not None and (text := _text(tokenizer, bos)) is not None:
            names.setdefault("bos_token", text)
    template = _template(source, fields.get("chat_template"), names_file, names)
    return TextFiles(content, generation, template)


def with_added_bos(
    generation: Mapping[str, Any], tokenizer: Tokenizer, subject: str | Path
) -> dict[str, Any]:
    """Return generation defaults whose BOS token is the one that the tokenizer adds, if any.

    Many configurations, such as those of Qwen and Falcon3, name a BOS token that did not occur in
    training.
    """
    before = added_tokens(tokenizer, subject).before
    if len(before) > 1:
        names = ", ".join(shown(tokenizer.id_to_token(token)) for token in before)
        raise ConfigError(
            f"{subject}: its post_processor must add at most one token before a text but adds "
            f"{names}; use another tokenizer"
        )
    others = {key: value for key, value in generation.items() if key != "bos_token_id"}
    return {"bos_token_id": before[0], **others} if before else others


def _generation(source: Path, vocab_size: int) -> dict[str, Any]:
    """Return the known keys of generation_config.json; config.json has the ids that it lacks."""
    config = {key: value for key, value in _read(source / CONFIG).items() if key in _KEPT}
    stored = read_generation_config(source / GENERATION)
    # The ids of a config may be defaults of another vocabulary, which its generation config copies.
    own = {key: value for key, value in stored.items() if value != config.get(key)}
    known = {**without_unknown_tokens(config, vocab_size), **own}
    kept = {key: known[key] for key in _KEPT if known.get(key) is not None}
    GenerationConfig.of(kept, source / GENERATION, vocab_size)
    return kept


def _token_names(fields: dict[str, Any], file: Path) -> dict[str, str]:
    """Return the special tokens that a template of transformers reads, by variable."""
    tokens = {name: value for name, value in fields.items() if name.endswith("_token")}
    extra = fields.get("extra_special_tokens")
    if isinstance(extra, dict):
        tokens |= extra
    names = {}
    for name, token in tokens.items():
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            names[name] = text
        elif name in _TOKENS and text is not None:
            raise ConfigError(f"{file}: {name} must be a string but is {shown(text)}")
    return names


def _template(
    source: Path, stored: Any, names_file: Path, names: Mapping[str, str]
) -> bytes | None:
    """Return the chat template, extended by the names of the special tokens that it reads.

    It is a file, or a string or a list of named ones in `stored`.
    """
    from yocobit.text.chat_template import MAX_SOURCE_BYTES, with_token_names  # imports Jinja

    file = source / CHAT_TEMPLATE
    if file.is_file():
        text = read_text(file, MAX_SOURCE_BYTES)
    elif isinstance(stored, list):
        text = _default(stored, names_file)
    elif isinstance(stored, str) and stored:
        text, file = stored, names_file
    elif stored in (None, ""):
        return None
    else:
        raise ConfigError(f"{names_file}: chat_template must be a string but is {shown(stored)}")
    return with_token_names(text, names, file)


def _default(templates: list[Any], names_file: Path) -> str:
    """Return the template named "default"."""
    named = {t.get("name"): t.get("template") for t in templates if isinstance(t, dict)}
    text = named.get("default")
    if not isinstance(text, str):
        raise ConfigError(
            f"{names_file}: chat_template must be a string but is {shown(templates)} without a "
            "template named 'default'"
        )
    return text


def _text(tokenizer: Tokenizer, token: int) -> str | None:
    text: str | None = tokenizer.id_to_token(token)
    return text


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
