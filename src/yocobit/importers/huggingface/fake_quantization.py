"""Fake-quantised matrices: float tensors whose values are integers times a scale per group.

Checkpoints such as Bonsai's "-unpacked" ones, BitCPM4 and TriLM are published in float16 or
bfloat16 with the values of their ternary weights. The integers and scales are recovered from the
values and verified for every weight: integer * scale is the value, bit for bit.

Letters: M rows   K columns   G groups in a row   N columns in a group
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from yocobit.importers.checkpoint import IntegerMatrix
from yocobit.importers.group_scales import TRITS, fold, format_of
from yocobit.packing.formats import WeightFormat
from yocobit.packing.layout import Array, Floats, Int8s, row_pieces

_GROUPS = (128, 64)  # N; the first that fits


class _Groups(NamedTuple):
    """Integers (M, K) and scales (M, G) of some rows."""

    integers: Int8s
    scales: Floats


def recover(pieces: Iterable[Array]) -> IntegerMatrix | None:
    """Return the integers and scales of a fake-quantised matrix; None if it is not one.

    `pieces` are its rows, in order, in float16 or float32. The integers of the matrix are in
    (-1, 1), (-1, 0, 1), (-1, 0, 1, 2) or (-3, -1, 1, 3). Scales are those of groups of 128 columns,
    or of 64 if these differ; a matrix of trits with equal scales in each row has one per row.
    """
    found: list[_Groups] = []
    columns = _GROUPS[0]
    for piece in pieces:
        groups = _recover(piece, columns)
        if groups is None and columns != _GROUPS[-1]:
            # Earlier pieces fit groups of 128, and so they fit those of 64.
            columns = _GROUPS[-1]
            found = [_with_half_groups(each, piece.shape[1]) for each in found]
            groups = _recover(piece, columns)
        if groups is None:
            return None
        found.append(groups)
    integers = np.concatenate([each.integers for each in found])
    scales = np.concatenate([each.scales for each in found])
    values = _values(integers)
    if values is None or not scales.any():
        return None
    return IntegerMatrix(integers, fold(scales, columns, values))


def format_of_matrix(matrix: IntegerMatrix) -> WeightFormat | None:
    """Return the format that stores a recovered matrix; None if none does."""
    values = _values(matrix.integers)
    if values is None:
        return None
    return format_of(values, matrix.scale, matrix.integers.shape[1])


def is_plausible(sample: Array) -> bool:
    """Whether some rows of a matrix are fake-quantised; cheap for a dense matrix."""
    return any(_recover(sample, columns) is not None for columns in _GROUPS)


def _recover(rows: Array, columns: int) -> _Groups | None:
    """Return integers and scales of rows (M, K), the last group of which may be shorter."""
    M, K = rows.shape
    whole = K - K % columns
    integers = np.empty((M, K), dtype=np.int8)
    scales = np.empty((M, -(-K // columns)), dtype=np.float32)
    for piece in row_pieces(M, K):
        parts = [(slice(0, whole), columns), (slice(whole, K), K - whole)]
        for part, width in parts:
            if part.start == part.stop:
                continue
            values = rows[piece, part].reshape(-1, width)
            found = _recover_groups(values)
            if found is None:
                return None
            G = (part.stop - part.start) // width
            first = part.start // columns
            integers[piece, part] = found[0].reshape(-1, G * width)
            scales[piece, first : first + G] = found[1].reshape(-1, G)
    return _Groups(integers, scales)


def _recover_groups(values: Array) -> tuple[Int8s, Floats] | None:
    """Return integers (G, N) and scales (G,) of groups (G, N); None if they are not quantised.

    A group has at most two magnitudes other than 0, and the larger one is 2 or 3 times the smaller.
    """
    # The bits of magnitudes are ordered as the magnitudes are, and are compared faster.
    unsigned = np.dtype(f"u{values.itemsize}")
    bits = values.view(unsigned)
    magnitudes = bits & unsigned.type((1 << 8 * values.itemsize - 1) - 1)
    largest = magnitudes.max(axis=1)
    scales = largest.view(values.dtype).astype(np.float32)
    if not np.isfinite(scales).all():
        return None
    is_zero, is_largest = magnitudes == 0, magnitudes == largest[:, None]
    is_negative = bits > unsigned.type(1 << 8 * values.itemsize - 1)
    integers = is_largest.view(np.int8)
    if not (is_largest | is_zero).all():
        smallest = np.where(is_zero, largest[:, None], magnitudes).min(axis=1)
        is_smallest = magnitudes == smallest[:, None]
        units = smallest.view(values.dtype).astype(np.float32)
        ratios = np.divide(scales, units, out=np.ones_like(scales), where=units > 0)
        if (
            not (is_largest | is_smallest | is_zero).all()
            or not np.isin(ratios, (1, 2, 3)).all()
            or (ratios * units != scales).any()
            or (is_largest & is_negative)[ratios == 2].any()  # -2 is in no format
            or is_zero[ratios == 3].any()  # 0 is not in that of -3 and 3
        ):
            return None
        integers = np.where(is_largest, ratios.astype(np.int8)[:, None], is_smallest.view(np.int8))
        scales = units
    integers = np.where(is_negative, -integers, integers)
    integers[scales == 0] = 0
    return integers, scales


def _values(integers: Int8s) -> tuple[int, ...] | None:
    """Return the integers of the format of a matrix; None if 0 or 2 occurs with -3 or 3."""
    low, high = integers.min(), integers.max()
    has_zero = bool((integers == 0).any())
    if low == -3 or high == 3:
        return None if has_zero or (integers == 2).any() else (-3, -1, 1, 3)
    if high == 2:
        return (*TRITS, 2)
    return TRITS if has_zero else (-1, 1)


def _with_half_groups(groups: _Groups, K: int) -> _Groups:
    """Return the same rows with two scales per group."""
    halves = groups.scales.repeat(2, axis=1)[:, : -(-K // _GROUPS[-1])]
    return _Groups(groups.integers, halves)
