"""GGUF files with matrices in 1 and 2 bits: the codecs of their types, and a writer.

The writer stores one tensor at a time, so a file may be larger than the memory. Needs the `gguf`
package (extra `peers`), which writes the container but lacks some of these types.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType, GGUFWriter
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class BlockType:
    """A type of ggml: its id, columns and bytes of a block, and the columns of a scale."""

    id: int
    columns: int
    size: int


TYPES = {
    "F32": BlockType(0, 1, 4),
    "F16": BlockType(1, 1, 2),
    "Q4_K": BlockType(12, 256, 144),
    "TQ2_0": BlockType(35, 256, 66),
    "Q1_0": BlockType(41, 128, 18),
    "Q2_0": BlockType(42, 64, 18),
}


@dataclass(frozen=True)
class Tensor:
    """A tensor to write: its type, its shape, and its values or bytes when needed."""

    kind: str
    shape: tuple[int, ...]
    values: Callable[[], Array]

    @property
    def size_bytes(self) -> int:
        stored = TYPES[self.kind]
        return int(np.prod(self.shape)) // stored.columns * stored.size


def encode(kind: str, codes: Array, scales: Array) -> Array:
    """Return the bytes (M, bytes) of codes (M, K) in Q1_0, Q2_0 or TQ2_0.

    Codes are -1 and 1, or -1, 0 and 1 (2 in Q2_0). `scales` (M, K / columns of a block) are
    rounded to float16.
    """
    M, K = codes.shape
    columns = TYPES[kind].columns
    blocks = codes.reshape(M, K // columns, columns)
    if kind == "Q1_0":
        packed = np.packbits(blocks > 0, axis=2, bitorder="little")
    elif kind == "Q2_0":  # column j is in bits 2 (j % 4) of byte j / 4
        packed = _two_bits((blocks + 1).reshape(*blocks.shape[:2], columns // 4, 4))
    else:  # byte m of each half holds the columns m, m + 32, m + 64, m + 96
        fields = (blocks + 1).reshape(*blocks.shape[:2], 2, 4, 32).swapaxes(3, 4)
        packed = _two_bits(fields).reshape(*blocks.shape[:2], columns // 4)
    d = scales.astype(np.float16)[:, :, None].view(np.uint8)
    parts = (packed, d) if kind == "TQ2_0" else (d, packed)
    return np.concatenate(parts, axis=2).reshape(M, -1)


def _two_bits(fields: Array) -> Array:
    """Pack fields (..., 4) of values 0 to 3 into bytes, the first in the lowest bits."""
    places = np.array([1, 4, 16, 64], dtype=np.uint8)
    packed: Array = (fields.astype(np.uint8) * places).sum(axis=-1, dtype=np.uint8)
    return packed


def write_gguf(
    path: Path, architecture: str, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Path:
    """Write a file; keys of `metadata` without a prefix are those of the architecture.

    Keys of the prefixes general and tokenizer are written unchanged. A float is stored as float32,
    an int as uint32, or int32 in lists.
    """
    writer = GGUFWriter(path, architecture)
    for key, value in metadata.items():
        is_global = key.startswith(("general.", "tokenizer."))
        name = key if is_global else f"{architecture}.{key}"
        writer.add_key_value(name, value, *_value_types(value))
    for name, tensor in tensors.items():
        kind = TYPES[tensor.kind].id
        # A dtype other than uint8: `shape` is that of the values.
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.int8), tensor.size_bytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors.values():
        writer.write_tensor_data(np.ascontiguousarray(tensor.values()))
    writer.close()
    return path


def _value_types(value: Any) -> tuple[GGUFValueType, GGUFValueType | None]:
    if isinstance(value, list):
        kind = _value_types(value[0])[0]
        is_int = kind is GGUFValueType.UINT32
        return GGUFValueType.ARRAY, GGUFValueType.INT32 if is_int else kind
    types = {
        bool: GGUFValueType.BOOL,
        int: GGUFValueType.UINT32,
        float: GGUFValueType.FLOAT32,
        str: GGUFValueType.STRING,
    }
    return types[type(value)], None
