"""Granularities of scales: one per matrix, per row, or per group of columns of a row.

Letters: M output features   K input features
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from yocobit.packing.file_format import DTYPES
from yocobit.packing.layout import ROWS, Array


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole matrix."""

    dtype: str

    def shape(self, M: int, K: int) -> tuple[int, ...]:
        """Return the shape of the stored scales."""
        return (1,)

    def expand(self, scales: Array, M: int, K: int) -> Array:
        """Return the scales in a shape that broadcasts to (M, K)."""
        return scales


@dataclass(frozen=True)
class PerRow:
    """One scale per output feature."""

    dtype: str

    def shape(self, M: int, K: int) -> tuple[int, ...]:
        return (M,)

    def expand(self, scales: Array, M: int, K: int) -> Array:
        return scales[:, None]


@dataclass(frozen=True)
class PerGroup:
    """One scale per `columns` consecutive weights of a row; 0 for a group of zeros."""

    columns: int
    dtype: str
    per_block: int = 1  # groups of a row in a block of codes

    def shape(self, M: int, K: int) -> tuple[int, ...]:
        return -(-M // ROWS), self.stored_groups(-(-K // self.columns)), ROWS

    def expand(self, scales: Array, M: int, K: int) -> Array:
        return self.decode(scales, M, K).repeat(self.columns, axis=1)[:, :K]

    def encode(self, scales: Array) -> Array:
        """Return the stored form of scales (M, groups of a row); those past the last are 0."""
        M, groups = scales.shape
        padded = np.zeros((-(-M // ROWS) * ROWS, self.stored_groups(groups)), DTYPES[self.dtype])
        padded[:M, :groups] = scales
        return np.ascontiguousarray(padded.reshape(-1, ROWS, padded.shape[1]).transpose(0, 2, 1))

    def decode(self, scales: Array, M: int, K: int) -> Array:
        """Invert encode(): return scales (M, groups of a row)."""
        rows = scales.transpose(0, 2, 1).reshape(-1, scales.shape[1])[:M]
        return rows[:, : -(-K // self.columns)]

    def stored_groups(self, groups: int) -> int:
        """Return the number of stored scales of a row: those of whole blocks."""
        return -(-groups // self.per_block) * self.per_block
