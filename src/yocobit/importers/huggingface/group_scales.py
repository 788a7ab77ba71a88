"""Scales per group of columns: the coarsest that are equal, and the format that stores them.

Letters: M output features   K input features   G groups in a row
"""

from __future__ import annotations

import numpy as np

from yocobit.packing.formats import FORMATS, PerGroup, PerRow, WeightFormat
from yocobit.packing.layout import Array, Floats

TRITS = (-1, 0, 1)
COLUMNS = 128  # of the groups that have a format for all values


def fold(scales: Floats, columns: int, values: tuple[int, ...]) -> Floats:
    """Return scales (M, G) of groups of `columns` for groups of up to COLUMNS, or per row.

    Groups whose scales are equal become one, and wider groups several. Trits whose scales are equal
    in each row get one per row, (M,). The scale 0 of a group of zeros is equal to any other; that
    of a row of zeros is 1.
    """
    largest = scales.max(axis=1)
    if values == TRITS and (_or_zero(scales, largest[:, None])).all():
        return np.where(largest > 0, largest, np.float32(1))
    if columns > COLUMNS:
        scales = scales.repeat(-(-columns // COLUMNS), axis=1)
    while columns < COLUMNS:
        padded = np.pad(scales, ((0, 0), (0, scales.shape[1] % 2)))
        pairs = padded.reshape(len(scales), -1, 2)
        folded = pairs.max(axis=2)
        if not _or_zero(pairs, folded[..., None]).all():
            break
        scales, columns = folded, 2 * columns
    return scales


def format_of(values: tuple[int, ...], scale: Array, K: int) -> WeightFormat | None:
    """Return the smallest weights-only format of these values and scales; None if there is none."""
    for format in sorted(FORMATS.values(), key=lambda each: each.bits):
        if format.activations.group_columns is None or not set(values) <= set(format.values):
            continue
        granularity = format.scale
        if scale.ndim == 1 and isinstance(granularity, PerRow):
            return format
        if isinstance(granularity, PerGroup) and -(-K // granularity.columns) == scale.shape[-1]:
            return format
    return None


def _or_zero(scales: Floats, expected: Floats) -> Array:
    result: Array = (scales == expected) | (scales == 0)
    return result
