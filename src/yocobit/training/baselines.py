"""What general-purpose compressors reach on the validation text of a run: bars to clear."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import numpy as np

from yocobit.data.tokenizer import end_token
from yocobit.training.corpus import open_valid


def validation_text(data: Path) -> bytes:
    """Return the validation documents of RUN/data, one after the other, as UTF-8."""
    tokenizer, valid = open_valid(data)
    tokens = valid.read(0, len(valid))
    texts: list[bytes] = []
    begin = 0
    for end in np.flatnonzero(tokens == end_token(tokenizer)):
        texts.append(tokenizer.decode(tokens[begin:end].tolist()).encode())
        begin = int(end) + 1
    return b"".join(texts)


def compressed_bits_per_byte(text: bytes) -> dict[str, float]:
    """Return bits per byte of the whole text as one stream, by compressor."""
    return {
        "gzip -9": 8 * len(gzip.compress(text, 9)) / len(text),
        "xz -9": 8 * len(lzma.compress(text, preset=9)) / len(text),
    }
