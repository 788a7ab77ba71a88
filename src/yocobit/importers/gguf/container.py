"""The container of GGUF files: header, metadata and tensor infos; little-endian, v2 and v3.

Every length is checked against the file before that many bytes are read, so a malformed file costs
at most a small multiple of its size in memory. The header is memory-mapped. The data is read in
pieces, so its pages do not count as memory of the process; tensor_types.py decodes it.

The format: the page "GGUF" in the documentation of ggml-org/ggml.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from yocobit.errors import ConfigError, shown
from yocobit.packing.layout import Codes
from yocobit.reading import open_regular

# A string, a number, a bool, or an array: numbers as NumPy arrays, all others as lists.
Value = Any

MAGIC, VERSIONS = b"GGUF", (2, 3)
_MAX_HEADER_BYTES = 1 << 28  # of metadata and tensor infos; large vocabularies have 2^24
_MAX_OBJECTS = 1 << 22  # strings and arrays inside arrays: Python objects of 50 bytes and more
_MAX_DEPTH = 4  # of arrays in arrays
_MAX_NAME_BYTES = 256  # of a tensor; ggml has 64
_MAX_KEY_BYTES = 65535
_MAX_DIMENSIONS = 4
_MAX_WEIGHTS = 1 << 40  # of a tensor
_TENSOR_INFO_BYTES = 8 + 4 + 4 + 8  # of a tensor without name and dimensions
_KEY_VALUE_BYTES = 8 + 4 + 1

NUMBERS = {  # value types, and their dtypes
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
STRING, ARRAY, BOOL = 8, 9, 7
_LENGTH = struct.Struct("<Q")
ALIGNMENT, _MAX_ALIGNMENT = 32, 1 << 16


class TensorInfo(NamedTuple):
    """Name, type, shape and location of a tensor."""

    name: str
    type_id: int
    shape: tuple[int, ...]  # the last dimension is contiguous, as in NumPy; GGUF stores it first
    offset: int  # from the start of the file
    span: int  # bytes up to the next tensor or the end of the file, padding included


class GGUFFile:
    """Metadata and tensors of a GGUF file."""

    def __init__(self, path: Path) -> None:
        """Read the header; ConfigError if it is malformed."""
        self.path = path
        with open_regular(path) as stream:
            _check_start(path, stream.read(8))
            data: Codes = np.memmap(stream, dtype=np.uint8, mode="r")
        self._size = data.size
        header = _Header(path, data)
        n_tensors = header.count("tensors", _TENSOR_INFO_BYTES)
        n_keys = header.count("metadata keys", _KEY_VALUE_BYTES)
        self.metadata: Mapping[str, Value] = header.metadata(n_keys)
        self._refuse_parts()
        self.alignment = self._read_alignment()
        self.tensors = self._locate(header.tensors(n_tensors), header.position)

    def read(self, tensor: TensorInfo, start: int = 0, end: int | None = None) -> Codes:
        """Read bytes `start` to `end` of a tensor; without `end`, up to the next tensor."""
        n = (tensor.span if end is None else end) - start
        try:
            data: Codes = np.fromfile(self.path, np.uint8, n, offset=tensor.offset + start)
        except OSError as error:
            raise self.error(f"cannot be read ({error})") from None
        if data.size != n:
            raise self.error("was truncated while it was read; copy it again")
        return data

    def error(self, message: str) -> ConfigError:
        """Return an error about this file."""
        return ConfigError(f"{self.path}: {message}")

    def _refuse_parts(self) -> None:
        n_parts = self.metadata.get("split.count", 1)
        if type(n_parts) is not int or n_parts > 1:
            raise self.error(
                f"must be a whole model but is one of {shown(n_parts)} parts (split.count); join "
                "them with llama-gguf-split --merge FIRST_PART MERGED_FILE"
            )

    def _read_alignment(self) -> int:
        value = self.metadata.get("general.alignment", ALIGNMENT)
        is_power = type(value) is int and 0 < value <= _MAX_ALIGNMENT and value & (value - 1) == 0
        if not is_power:
            raise self.error(
                f"general.alignment must be a power of two, at most {_MAX_ALIGNMENT}, but is "
                f"{shown(value)}"
            )
        return int(value)

    def _locate(self, found: list[TensorInfo], header_bytes: int) -> dict[str, TensorInfo]:
        """Return the tensors by name with absolute offsets and spans; ConfigError for overlaps."""
        size = self._size
        start = -(-header_bytes // self.alignment) * self.alignment
        ordered = sorted(found, key=lambda tensor: tensor.offset)
        tensors: dict[str, TensorInfo] = {}
        for i, tensor in enumerate(ordered):
            end = start + ordered[i + 1].offset if i + 1 < len(ordered) else size
            offset = start + tensor.offset
            if tensor.offset % self.alignment:
                raise self.error(
                    f"tensor {shown(tensor.name)} must start at a multiple of {self.alignment} "
                    f"bytes but starts at {tensor.offset}"
                )
            if offset >= size:
                raise self.error(
                    f"tensor {shown(tensor.name)} starts at byte {offset} but the file has {size}; "
                    "it is incomplete: download it again"
                )
            if offset >= end:
                raise self.error(
                    f"tensor {shown(tensor.name)} starts at byte {offset}, where another tensor "
                    "starts too"
                )
            if tensor.name in tensors:
                raise self.error(f"tensor {shown(tensor.name)} must occur once but occurs twice")
            tensors[tensor.name] = tensor._replace(offset=offset, span=end - offset)
        return {tensor.name: tensors[tensor.name] for tensor in found}


def read_start(start: bytes, path: Path) -> dict[str, Value]:
    """Return the metadata keys that are complete in the first bytes of a file.

    ConfigError, naming `path`, if they are malformed.
    """
    _check_start(path, start[:8])
    header = _Header(path, np.frombuffer(start, dtype=np.uint8))
    header.count("tensors", least_bytes=0)
    return header.metadata(header.count("metadata keys", least_bytes=0), is_cut=True)


def _check_start(path: Path, start: bytes) -> None:
    """Raise ConfigError unless the first 8 bytes are those of a supported version."""
    if start[:4] == MAGIC and len(start) < 8:
        raise ConfigError(f"{path}: was truncated: it ends after {len(start)} bytes; copy it again")
    if start[:4] != MAGIC:
        raise ConfigError(
            f"{path}: must be a GGUF file, which starts with {MAGIC!r}, but starts with "
            f"{shown(start[:4])}; download it again, or name a model"
        )
    version = int.from_bytes(start[4:], "little")
    if version in VERSIONS:
        return
    if int.from_bytes(start[4:], "big") in (1, *VERSIONS):
        raise ConfigError(
            f"{path}: must be little-endian but is a big-endian GGUF file; convert it with "
            "gguf-convert-endian FILE little"
        )
    known = " or ".join(map(str, VERSIONS))
    raise ConfigError(
        f"{path}: GGUF version must be {known} but is {version}; convert the model again with a "
        "current llama.cpp"
    )


class _Truncated(ConfigError):
    """The header ends too early."""


class _Header:
    """A cursor over the header, after magic and version."""

    def __init__(self, path: Path, data: Codes) -> None:
        self.path = path
        self.position = 8
        self._data = data.data[:_MAX_HEADER_BYTES]
        self._is_cut = data.size > _MAX_HEADER_BYTES
        self._n_objects = 0
        self._what = "the header"  # what is read now, for errors

    def count(self, what: str, least_bytes: int) -> int:
        """Read a count of entries, each at least `least_bytes` long."""
        (n,) = self._unpack(_LENGTH)
        if n * least_bytes > len(self._data):
            raise self._error(f"has {n} {what}, which cannot fit into {len(self._data)} bytes")
        return int(n)

    def metadata(self, n_keys: int, is_cut: bool = False) -> dict[str, Value]:
        """Read the metadata; if the file is cut, up to the last complete key."""
        values: dict[str, Value] = {}
        try:
            for i in range(n_keys):
                self._what = f"metadata key {i}"
                key = self._string(_MAX_KEY_BYTES)
                self._what = f"key {shown(key)}"
                if key in values:
                    raise self._error(f"{self._what} must occur once but occurs twice")
                values[key] = self._value(self._type())
        except _Truncated:
            if not is_cut:
                raise
        return values

    def tensors(self, n_tensors: int) -> list[TensorInfo]:
        """Read the tensor infos; their offsets are relative to the data, their spans are 0."""
        return [self._tensor(i) for i in range(n_tensors)]

    def _tensor(self, i: int) -> TensorInfo:
        self._what = f"tensor {i}"
        name = self._string(_MAX_NAME_BYTES)
        self._what = f"tensor {shown(name)}"
        if not name.isprintable():
            raise self._error(f"{self._what} must have a printable name")
        n_dimensions = self._type()
        if not 1 <= n_dimensions <= _MAX_DIMENSIONS:
            raise self._error(
                f"{self._what} must have 1 to {_MAX_DIMENSIONS} dimensions but has {n_dimensions}"
            )
        shape = self._unpack(struct.Struct(f"<{n_dimensions}Q"))[::-1]
        n_weights = 1
        for size in shape:
            n_weights *= size
        if not 0 < n_weights <= _MAX_WEIGHTS:
            raise self._error(
                f"{self._what} must have 1 to {_MAX_WEIGHTS} weights but has shape {shape}"
            )
        type_id = self._type()
        (offset,) = self._unpack(_LENGTH)
        return TensorInfo(name, type_id, tuple(map(int, shape)), int(offset), 0)

    def _value(self, kind: int, depth: int = 0) -> Value:
        if kind in NUMBERS:
            return self._numbers(kind, 1)[0].item()
        if kind == STRING:
            return self._string(len(self._data))
        if kind != ARRAY:
            raise self._error(f"{self._what} has the unknown value type {kind}")
        if depth == _MAX_DEPTH:
            raise self._error(f"{self._what} nests arrays more than {_MAX_DEPTH} deep")
        item = self._type()
        (n,) = self._unpack(_LENGTH)
        if item in NUMBERS:
            return self._numbers(item, int(n)).copy()
        self._n_objects += n
        if self._n_objects > _MAX_OBJECTS:
            raise self._error(f"has more than {_MAX_OBJECTS} strings and arrays in arrays")
        if item == STRING:
            return self._strings(int(n))
        return [self._value(item, depth + 1) for _ in range(n)]

    def _numbers(self, kind: int, n: int) -> np.ndarray[Any, Any]:
        dtype = np.dtype(NUMBERS[kind])
        raw = np.frombuffer(self._take(n * dtype.itemsize), dtype=np.uint8)
        if kind == BOOL and (raw > 1).any():
            raise self._error(f"{self._what} must be 0 or 1 but is {raw.max()}")
        return raw.view(dtype)

    def _strings(self, n: int) -> list[str]:
        """Read `n` strings: vocabularies have 100,000s, so this loop calls nothing of ours."""
        data, position = self._data, self.position
        strings: list[str] = []
        for _ in range(n):
            start = position + 8
            if start > len(data):
                raise self._truncated()
            position = start + int.from_bytes(data[position:start], "little")
            if position > len(data):
                raise self._truncated()
            strings.append(self._decode(data[start:position]))
        self.position = position
        return strings

    def _string(self, most: int) -> str:
        (n,) = self._unpack(_LENGTH)
        if n > most:
            if n > len(self._data):
                raise self._truncated()
            raise self._error(f"{self._what} has a name of {n} bytes; the limit is {most}")
        return self._decode(self._take(n))

    def _decode(self, raw: memoryview) -> str:
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError as error:
            raise self._error(f"{self._what} is not UTF-8 (byte {error.start})") from None

    def _type(self) -> int:
        return int.from_bytes(self._take(4), "little")

    def _unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack(self._take(layout.size))

    def _take(self, n: int) -> memoryview:
        if n > len(self._data) - self.position:
            raise self._truncated()
        start = self.position
        self.position += n
        return self._data[start : self.position]

    def _truncated(self) -> ConfigError:
        if self._is_cut:
            return self._error(f"has a header of more than {_MAX_HEADER_BYTES} bytes")
        return _Truncated(
            f"{self.path}: ends within {self._what}; it is incomplete: download it again"
        )

    def _error(self, message: str) -> ConfigError:
        return ConfigError(f"{self.path}: {message}")
