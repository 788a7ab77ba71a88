"""TensorSource: named tensors of a checkpoint, read one at a time into NumPy, without torch.

`pack` and the importers map a source to a packed model. Implemented here for directories of
safetensors files, as yocobit and Hugging Face write them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from yocobit.config import ConfigError
from yocobit.packing.format import CONFIG, MODEL

Array = NDArray[Any]

_BFLOAT16 = "BF16"  # NumPy has none: read as float32, which holds it exactly
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
    """Where the tensors of a checkpoint come from."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the checkpoint says about its model."""

    def names(self) -> Collection[str]:
        """Return the names of the tensors."""

    def read(self, name: str) -> Array:
        """Return a tensor, bfloat16 as float32; ConfigError if there is none of that name."""


class _Entry(NamedTuple):
    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int  # byte of the file


class SafetensorsDirectory:
    """config.json and model.safetensors, or the files that model.safetensors.index.json names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        index = path / f"{MODEL}.index.json"
        files = sorted(set(read_json(index)["weight_map"].values())) if index.exists() else [MODEL]
        self._entries: dict[str, _Entry] = {}
        for file in files:
            self._entries |= _entries(path / file)

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


def _entries(file: Path) -> dict[str, _Entry]:
    """Return where the tensors of a safetensors file are."""
    try:
        with safe_open(file, "numpy"):  # checks the file
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
    """Read a JSON object; ConfigError names the file if it holds none."""
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file") from None
    except ValueError as error:
        raise ConfigError(f"{file}: is not valid JSON ({error})") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"{file}: must hold an object but holds {type(fields).__name__}")
    return fields
