"""The weights of a packed model: integers and scales, or floats, one tensor at a time.

Letters: M output features   K input features
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from yocobit.errors import ConfigError
from yocobit.exporters.rules import with_rope_in_halves
from yocobit.importers.row_order import in_halves
from yocobit.packing import layout
from yocobit.packing.file_format import DTYPES, scale_name
from yocobit.packing.layout import Array, Codes, Floats, Int8s
from yocobit.packing.reader import PackedModel
from yocobit.packing.scales import PerGroup

_CHUNK_VALUES = 1 << 20  # of a table, converted at once
_ROTATED = re.compile(r"layers\.\d+\.mixer\.([qk]_proj\.(weight|bias)|[qk]_norm\.weight)")


class ScaledRows(NamedTuple):
    """Integers (M, K) and float32 scales: one (1,), one per row, or one per group of columns."""

    integers: Int8s
    scales: Floats


class Weights:
    """The mapped tensors of a packed model.

    With `in_halves`, the rows of Q and K are those of rules.with_rope_in_halves.
    """

    def __init__(self, model: PackedModel, in_halves: bool = False) -> None:
        self.file = model.file
        self._model = model
        config = with_rope_in_halves(model.config, model.path) if in_halves else model.config
        self._reorders = config is not model.config
        self._data: Codes = np.memmap(model.file, dtype=np.uint8, mode="r")

    def stored(self, name: str) -> Array:
        """Return a tensor of the file as it is mapped."""
        tensor = self._model.tensors[name]
        raw = self._data[tensor.begin : tensor.end]
        return raw.view(DTYPES[tensor.dtype]).reshape(tensor.shape)

    def matrix(self, name: str) -> ScaledRows:
        """Return a matrix in a low-bit format; ConfigError if it has invalid codes."""
        stored = self._model.parameters[name]
        integers = stored.format.decode(self.stored(name), *stored.shape)
        if not np.isin([integers.min(), integers.max()], stored.format.values).all():
            raise self._invalid(name)
        scales = self.stored(scale_name(name))
        if isinstance(stored.format.scale, PerGroup):
            scales = stored.format.scale.decode(scales, *stored.shape)
        if scales.size > 1:
            scales = self._in_halves(name, scales)
        return ScaledRows(self._in_halves(name, integers), scales.astype(np.float32))

    def int8_rows(self, name: str) -> Iterator[ScaledRows]:
        """Yield the rows of an int8 table."""
        values, scales = self.stored(name), self.stored(scale_name(name))
        for rows in _chunks(values.shape):
            yield ScaledRows(values[rows], scales[rows])

    def int4_codes(self, name: str) -> tuple[Codes, Array]:
        """Return codes (M, K), integers + 8, and float16 scales (M, K / 64) of an int4 table."""
        M, K = self._model.parameters[name].shape
        codes = layout.unpack_codes(self.stored(name), M, K, bits=4)
        scales = self.stored(scale_name(name))  # (groups, blocks, rows of a group)
        return codes, scales.transpose(0, 2, 1).reshape(-1, scales.shape[1])[:M]

    def floats(self, name: str) -> Iterator[Floats]:
        """Yield the rows of a parameter in float32, as the engine computes with them."""
        format, shape, _ = self._model.parameters[name]
        values = self.stored(name)
        if format.block_columns > 1:
            floats = format.dequantize(values, self.stored(scale_name(name)), *shape)
            yield self._in_halves(name, floats)
        elif format.scale is not None:
            for integers, scales in self.int8_rows(name):
                yield integers * scales[:, None]
        elif self._is_reordered(name):
            yield self._in_halves(name, values).astype(np.float32, copy=False)
        else:
            for rows in _chunks(shape):
                yield values[rows].astype(np.float32, copy=False)

    def floats_of(self, name: str) -> Floats:
        """Return a whole parameter in float32."""
        values = np.empty(self._model.parameters[name].shape, dtype=np.float32)
        start = 0
        for rows in self.floats(name):
            values[start : start + len(rows)] = rows
            start += len(rows)
        return values

    def float16s(self, name: str) -> Array:
        """Return a parameter that is stored in float16."""
        return self._in_halves(name, self.stored(name))

    def _is_reordered(self, name: str) -> bool:
        return self._reorders and _ROTATED.fullmatch(name) is not None

    def _in_halves(self, name: str, rows: Array) -> Array:
        is_reordered = self._is_reordered(name)
        return in_halves(rows, self._model.config.head_dim) if is_reordered else rows

    def _invalid(self, name: str) -> ConfigError:
        return ConfigError(f"{self.file}: tensor '{name}' has invalid codes; run yocobit verify")


def _chunks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield the rows of a tensor in slices."""
    step = max(_CHUNK_VALUES * shape[0] // math.prod(shape), 1)
    for start in range(0, shape[0], step):
        yield slice(start, start + step)
