"""TensorSource: named tensors of a checkpoint, read one at a time into NumPy, without torch.

pack() and the importers convert a source to a packed model. The implementation here reads
directories of safetensors files, as written by yocobit and Hugging Face.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from yocobit.config import ConfigError
from yocobit.errors import shown
from yocobit.packing.file_format import CONFIG, INDEX, MODEL
from yocobit.packing.layout import Array
from yocobit.packing.safetensors_header import TensorEntry, read_entries
from yocobit.reading import open_regular, read_json

_BFLOAT16 = "BF16"  # not in NumPy: converted to float32, which is exact
_DTYPES = {
    "BOOL": "?",
    "U8": "u1",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
    "I8": "i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
    "F16": "<f2",
    _BFLOAT16: "<u2",
    "F32": "<f4",
    "F64": "<f8",
}
_PIECE_BYTES = 1 << 24
_ITEM_BYTES = {name: np.dtype(dtype).itemsize for name, dtype in _DTYPES.items()}


class TensorSource(Protocol):
    """The named tensors of a checkpoint."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The model configuration in the checkpoint."""

    def names(self) -> Collection[str]:
        """Return the names of the tensors."""

    def read(self, name: str) -> Array:
        """Return a tensor, bfloat16 as float32; ConfigError if the name is unknown."""


class SafetensorsDirectory:
    """config.json and model.safetensors, or the shards of model.safetensors.index.json."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, TensorEntry] = {}
        for file in tensor_files(path):
            found = read_entries(file, _ITEM_BYTES)
            if repeated := found.keys() & self._entries.keys():
                name = shown(min(repeated))
                raise ConfigError(f"{file}: tensor {name} must be in one file but is in two")
            self._entries |= found

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """The fields of config.json."""
        return read_json(self.path / CONFIG)

    def names(self) -> Collection[str]:
        return self._entries.keys()

    def dtype(self, name: str) -> str:
        """Return the dtype of a tensor as in the file, such as "BF16"."""
        return self._entries[name].dtype

    def are_equal(self, first: str, second: str) -> bool:
        """Whether two tensors have the same dtype, shape and bytes."""
        one, other = self._entries[first], self._entries[second]
        if one[1:3] != other[1:3] or one.end - one.begin != other.end - other.begin:
            return False
        try:
            with open_regular(one.file) as stream, open_regular(other.file) as twin:
                for offset in range(0, one.end - one.begin, _PIECE_BYTES):
                    size = min(_PIECE_BYTES, one.end - one.begin - offset)
                    stream.seek(one.begin + offset)
                    twin.seek(other.begin + offset)
                    if stream.read(size) != twin.read(size):
                        return False
        except OSError as error:
            raise ConfigError(f"{one.file}: cannot be read ({error})") from None
        return True

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._entries[name].shape

    def read(self, name: str) -> Array:
        return self.read_rows(name)

    def read_rows(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Return items `start` to `stop` of the first axis of a tensor, as read() does."""
        if name not in self._entries:
            raise ConfigError(f"{self.path}: tensor '{name}' is missing")
        file, dtype, shape, begin, _ = self._entries[name]
        if (start, stop) != (0, None):
            start, stop, _ = slice(start, stop).indices(shape[0])
            begin += start * math.prod(shape[1:]) * _ITEM_BYTES.get(dtype, 0)
            shape = (max(stop - start, 0), *shape[1:])
        if dtype not in _DTYPES:
            raise ConfigError(
                f"{file}: tensor '{name}' must be of a dtype in {', '.join(_DTYPES)} but is {dtype}"
            )
        size = math.prod(shape)
        if dtype != _BFLOAT16:
            return _from_file(file, _DTYPES[dtype], size, begin).reshape(shape)
        bits = np.empty(size, dtype="<u4")
        step = _PIECE_BYTES // 2
        for first in range(0, size, step):  # the whole tensor is in memory in float32 only
            count = min(step, size - first)
            bits[first : first + count] = _from_file(file, "<u2", count, begin + 2 * first)
        bits <<= np.uint32(16)
        return bits.view("<f4").reshape(shape)


def _from_file(file: Path, dtype: str, size: int, begin: int) -> Array:
    """Read `size` items at an offset; ConfigError if the file ends before."""
    try:
        values: Array = np.fromfile(file, dtype, size, offset=begin)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error})") from None
    if values.size != size:
        raise ConfigError(f"{file}: was truncated while it was read; copy it again")
    return values


def tensor_files(path: Path) -> list[Path]:
    """Return model.safetensors of a checkpoint, or its shards if that is missing."""
    index = path / INDEX
    if (path / MODEL).exists():
        return [path / MODEL]
    if not index.exists():
        if shards := sorted(path.glob("*-of-*.safetensors")):
            raise ConfigError(
                f"{path}: holds shards, such as {shards[0].name}, but no {INDEX}, which names "
                "them; copy it from the source of the model"
            )
        return [path / MODEL]
    names = read_json(index).get("weight_map")
    if (
        not isinstance(names, dict)
        or not names
        or not all(isinstance(name, str) and Path(name).name == name for name in names.values())
    ):
        raise ConfigError(
            f"{index}: weight_map must map tensors to files of the directory but is {shown(names)}"
        )
    return [path / name for name in sorted(set(names.values()))]
