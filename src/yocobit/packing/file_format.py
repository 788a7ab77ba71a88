"""Constants of the packed format: file names, magic, version, dtypes, tensor names and hashes.

docs/reference/packed-format.md describes the format; formats.py has the weight formats.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from yocobit.errors import UserError
from yocobit.packing.safetensors_header import read_header
from yocobit.reading import open_regular

MODEL = "model.safetensors"
INDEX = f"{MODEL}.index.json"  # maps the tensors of a sharded checkpoint to its files
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"
GENERATION = "generation_config.json"

FORMAT = "yocobit"  # `format` in the metadata of MODEL
FORMAT_VERSION = "1"
FORMATS_KEY = "formats"  # in the metadata: JSON, the weight format of single parameters
ALIGNMENT = 64  # bytes; of the tensor data, and of each tensor whose size is a multiple of it
SMALLEST_ALIGNMENT = 4  # bytes; of the other tensors

# The dtypes of packed models, under their names in safetensors and in NumPy.
DTYPES = {"U8": "u1", "I8": "i1", "F16": "<f2", "F32": "<f4"}


class PackedModelError(UserError):
    """An invalid packed model; the message names the file or tensor."""


class TensorSpec(NamedTuple):
    """Dtype and shape of a tensor in the file."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Size of the tensor data."""
        return math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in the file; `begin` and `end` are byte offsets from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def scale_name(name: str) -> str:
    """Return the name of the tensor with the scales of the matrix `name`."""
    return f"{name}_scale"


def is_packed(path: Path) -> bool:
    """Whether a directory holds a packed model, valid or not; a checkpoint is not one."""
    try:
        with open_regular(path / MODEL) as stream:
            header, _ = read_header(stream, path / MODEL)
    except (OSError, UserError):
        return False
    metadata = header.get("__metadata__")
    return isinstance(metadata, dict) and metadata.get("format") == FORMAT


def header_sha256(header: dict[str, Any]) -> str:
    """Return the SHA-256 of a safetensors header without its own header_sha256."""
    metadata = {k: v for k, v in header["__metadata__"].items() if k != "header_sha256"}
    canonical = canonical_json({**header, "__metadata__": metadata})
    return hashlib.sha256(canonical).hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return JSON with sorted keys, no spaces and ASCII only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")
