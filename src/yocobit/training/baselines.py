"""What general-purpose compressors reach on the validation text of a run: bars to clear."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import numpy as np

from yocobit.training.tokenizer import end_token, load_tokenizer


def validation_text(data: Path) -> bytes:
    """Return the validation documents of RUN/data, one after the other, as UTF-8."""
    index = json.loads((data / "index.json").read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(data / "tokenizer.json")
    tokens = np.fromfile(data / "valid.bin", dtype=index["valid"]["dtype"])
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
