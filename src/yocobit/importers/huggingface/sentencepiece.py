"""tokenizer.model of SentencePiece as tokenizer.json, for checkpoints that have no other.

The file is a protocol buffer (sentencepiece_model.proto). Its pieces become the metadata of a GGUF
vocabulary, which gguf/tokenizer.py converts.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from yocobit.errors import ConfigError, shown
from yocobit.importers.gguf.tokenizer import tokenizer_json
from yocobit.importers.gguf.vocabulary import SENTENCEPIECE, TokenType, read_vocabulary
from yocobit.packing.text_files import TOKENIZER_CONFIG
from yocobit.reading import boundary, read_bytes, read_json
from yocobit.text import parse_tokenizer

FILE = "tokenizer.model"
_PREFIX = "tokenizer.ggml."
_REMEDY = "give the directory of a tokenizer.json with --tokenizer DIR"
_BPE = 2  # TrainerSpec.model_type


def convert_sentencepiece(directory: Path, vocab_size: int) -> bytes:
    """Return tokenizer.json for the tokenizer.model of a directory; ConfigError if it is invalid.

    Tokens that tokenizer_config.json adds are special tokens or whole words.
    """
    file = directory / FILE
    names = directory / TOKENIZER_CONFIG
    settings = read_json(names) if names.is_file() else {}
    with boundary(file, "is not a SentencePiece model"):
        metadata = _metadata(read_bytes(file), file)
    _add_tokens(metadata, settings.get("added_tokens_decoder"), names, vocab_size)
    for name in ("add_bos_token", "add_eos_token"):
        if settings.get(name) is not None:
            metadata[_PREFIX + name] = settings[name]
    vocabulary = read_vocabulary(metadata, file, vocab_size)
    assert vocabulary is not None
    content = tokenizer_json(vocabulary)
    parse_tokenizer(content.decode(), f"{file}: the converted tokenizer", vocab_size)
    return content


def _metadata(data: bytes, file: Path) -> dict[str, Any]:
    """Return the vocabulary in the keys of GGUF."""
    tokens, scores, types = [], [], []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for field, value in _fields(data):
        if field == 1:
            piece = dict(_fields(value))
            tokens.append(piece.get(1, b"").decode())
            scores.append(struct.unpack("<f", piece.get(2, bytes(4)))[0])
            types.append(piece.get(3, TokenType.NORMAL))
        elif field == 2:
            trainer = dict(_fields(value))
        elif field == 3:
            normalizer = dict(_fields(value))
    if (kind := trainer.get(3, 1)) != _BPE:
        raise ConfigError(f"{file}: model_type must be {_BPE} (BPE) but is {kind}; {_REMEDY}")
    if normalizer.get(2):
        name = shown(normalizer.get(1, b"").decode())
        raise ConfigError(f"{file}: the normaliser must be 'identity' but is {name}; {_REMEDY}")
    ids = {"unknown": trainer.get(40, 0), "bos": trainer.get(41, 1), "eos": trainer.get(42, 2)}
    return {
        f"{_PREFIX}model": SENTENCEPIECE,
        f"{_PREFIX}tokens": tokens,
        f"{_PREFIX}scores": np.array(scores, dtype=np.float32),
        f"{_PREFIX}token_type": np.array(types, dtype=np.int64),
        f"{_PREFIX}add_space_prefix": bool(normalizer.get(3, 1)),
        f"{_PREFIX}remove_extra_whitespaces": bool(normalizer.get(4, 1)),
        **{f"{_PREFIX}{role}_token_id": i for role, i in ids.items() if i < len(tokens)},
    }


def _add_tokens(metadata: dict[str, Any], added: Any, file: Path, vocab_size: int) -> None:
    """Append the tokens of `added_tokens_decoder`, a map of ids, after the pieces."""
    if added is None:
        return
    tokens: list[str] = metadata[f"{_PREFIX}tokens"]
    try:
        entries = {int(i): (entry["content"], entry.get("special")) for i, entry in added.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ConfigError(f"{file}: added_tokens_decoder must map ids to tokens") from None
    new = {i: entry for i, entry in entries.items() if len(tokens) <= i < vocab_size}
    types = metadata[f"{_PREFIX}token_type"].tolist()
    for i in range(len(tokens), max(new, default=-1) + 1):
        content, is_special = new.get(i, ("", True))
        if not isinstance(content, str):
            raise ConfigError(f"{file}: added_tokens_decoder must map ids to tokens")
        tokens.append(content)
        kind = TokenType.CONTROL if is_special else TokenType.USER_DEFINED
        types.append(kind if i in new else TokenType.UNUSED)
    scores = np.zeros(len(tokens), dtype=np.float32)
    scores[: len(metadata[f"{_PREFIX}scores"])] = metadata[f"{_PREFIX}scores"]
    metadata[f"{_PREFIX}scores"] = scores
    metadata[f"{_PREFIX}token_type"] = np.array(types, dtype=np.int64)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield numbers and values of the fields of a message: integers, or bytes of other types."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint(data, position)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, position = _varint(data, position)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"field {tag >> 3} has wire type {kind}")
        if position + size > len(data):
            raise ValueError(f"field {tag >> 3} ends after the file")
        yield tag >> 3, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return an integer of seven bits per byte, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("an integer has more than 64 bits")
