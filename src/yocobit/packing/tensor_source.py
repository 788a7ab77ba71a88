"""TensorSource: named tensors of a checkpoint, read one at a time into NumPy, without torch.

pack() and the importers convert a source to a packed model. The implementation here reads
directories of safetensors files, as written by yocobit and Hugging Face.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from yocobit.config import ConfigError
from yocobit.errors import printable
from yocobit.packing.format import CONFIG, INDEX, MODEL
from yocobit.packing.layout import Array

_BFLOAT16 = "BF16"  # not in NumPy: converted to float32, which is exact
_DTYPES = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
    "F16": "<f2",
    _BFLOAT16: "<u2",
    "F32": "<f4",
    "F64": "<f8",
}


class TensorSource(Protocol):
    """The named tensors of a checkpoint."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The model configuration that the checkpoint holds."""

    def names(self) -> Collection[str]:
        """Return the names of the tensors."""

    def read(self, name: str) -> Array:
        """Return a tensor, bfloat16 as float32; ConfigError if the name is unknown."""


class _Entry(NamedTuple):
    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int  # byte offset in the file


class SafetensorsDirectory:
    """config.json and model.safetensors, or the shards of model.safetensors.index.json."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, _Entry] = {}
        for file in tensor_files(path):
            self._entries |= _entries(file)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """The fields of config.json."""
        return read_json(self.path / CONFIG)

    def names(self) -> Collection[str]:
        return self._entries.keys()

    def read(self, name: str) -> Array:
        if name not in self._entries:
            raise ConfigError(f"{self.path}: tensor '{name}' is missing")
        file, dtype, shape, begin = self._entries[name]
        if dtype not in _DTYPES:
            raise ConfigError(
                f"{file}: tensor '{name}' must be of a dtype in {', '.join(_DTYPES)} but is {dtype}"
            )
        size = int(np.prod(shape, dtype=np.int64))
        try:
            values: Array = np.fromfile(file, _DTYPES[dtype], size, offset=begin).reshape(shape)
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read ({error})") from None
        if dtype != _BFLOAT16:
            return values
        bits = values.astype("<u4")
        bits <<= np.uint32(16)
        return bits.view("<f4")


def tensor_files(path: Path) -> list[Path]:
    """Return model.safetensors of a checkpoint, or its shards if that is missing."""
    index = path / INDEX
    if (path / MODEL).exists() or not index.exists():
        return [path / MODEL]
    names = read_json(index).get("weight_map")
    if (
        not isinstance(names, dict)
        or not names
        or not all(isinstance(name, str) and Path(name).name == name for name in names.values())
    ):
        raise ConfigError(
            f"{index}: weight_map must map tensors to files of the directory but is "
            f"{printable(repr(names), 200)}"
        )
    return [path / name for name in sorted(set(names.values()))]


def _entries(file: Path) -> dict[str, _Entry]:
    """Return dtype, shape and offset of the tensors of a safetensors file."""
    try:
        with safe_open(file, "numpy"):  # validates the header
            pass
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{file}: cannot be read ({error})") from None
    header.pop("__metadata__", None)
    return {
        name: _Entry(file, e["dtype"], tuple(e["shape"]), 8 + size + e["data_offsets"][0])
        for name, e in header.items()
    }


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; ConfigError names the file if that fails."""
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file") from None
    except ValueError as error:
        raise ConfigError(f"{file}: is not valid JSON ({error})") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"{file}: must hold an object but holds {type(fields).__name__}")
    return fields
