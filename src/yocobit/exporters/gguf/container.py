"""The container of GGUF files, written: header, metadata, tensor infos, data; version 3.

The reader, and the constants of the format, are in importers/gguf/container.py.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from yocobit.importers.gguf.container import ALIGNMENT, ARRAY, MAGIC, NUMBERS, STRING, VERSIONS
from yocobit.importers.gguf.tensor_types import TensorType
from yocobit.packing.layout import Array

# The types of values, by the Python type: an integer is an uint32, a float is a float32.
_SCALARS = {bool: "?", int: "<u4", float: "<f4"}
_IDS = {np.dtype(dtype): kind for kind, dtype in NUMBERS.items()}


class TensorSpec(NamedTuple):
    """Type and shape of a tensor; the last dimension is contiguous, as in NumPy."""

    type: TensorType
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Size of the data, without padding."""
        return self.type.size(math.prod(self.shape))


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    specs: Mapping[str, TensorSpec],
    data: Iterable[Iterable[Array]],
) -> None:
    """Write a file; `data` yields each tensor of `specs`, in order and in pieces.

    Metadata values are bools, ints, floats, strings, arrays of NumPy, and sequences of strings.
    """
    with path.open("wb") as stream:
        header = struct.pack("<4sIQQ", MAGIC, max(VERSIONS), len(specs), len(metadata))
        header += b"".join(_string(key) + _value(value) for key, value in metadata.items())
        offset = 0
        for name, spec in specs.items():
            shape = spec.shape[::-1]
            header += _string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
            header += struct.pack("<IQ", spec.type.id, offset)
            offset += spec.size_bytes + -spec.size_bytes % ALIGNMENT
        stream.write(header)
        _pad(stream)
        for (name, spec), pieces in zip(specs.items(), data, strict=True):
            n_bytes = sum(stream.write(np.ascontiguousarray(piece).data) for piece in pieces)
            if n_bytes != spec.size_bytes:
                raise ValueError(f"{name} must have {spec.size_bytes} bytes but has {n_bytes}")
            _pad(stream)


def _value(value: Any) -> bytes:
    """Return the type and the bytes of a metadata value."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, np.ndarray):
        return struct.pack("<IIQ", ARRAY, _IDS[value.dtype], len(value)) + value.tobytes()
    if isinstance(value, Sequence):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_string, value))
    number = np.array(value, dtype=_SCALARS[type(value)])
    return struct.pack("<I", _IDS[number.dtype]) + number.tobytes()


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _pad(stream: BinaryIO) -> None:
    stream.write(b"\0" * (-stream.tell() % ALIGNMENT))
