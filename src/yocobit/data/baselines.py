"""Bits per byte of general-purpose compressors on the validation text of a run, as baselines."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import numpy as np

from yocobit.data.corpus import open_valid
from yocobit.data.tokenizer import end_token


def validation_text(data: Path) -> bytes:
    """Return the validation documents of RUN/data, concatenated, as UTF-8."""
    tokenizer, valid = open_valid(data)
    tokens = valid.read(0, len(valid))
    texts: list[bytes] = []
    start = 0
    for end in np.flatnonzero(tokens == end_token(tokenizer)):
        texts.append(tokenizer.decode(tokens[start:end].tolist()).encode())
        start = int(end) + 1
    return b"".join(texts)


def compressed_bits_per_byte(text: bytes) -> dict[str, float]:
    """Return bits per byte of the text compressed as one stream, by compressor."""
    return {
        "gzip -9": 8 * len(gzip.compress(text, 9)) / len(text),
        "xz -9": 8 * len(lzma.compress(text, preset=9)) / len(text),
    }
