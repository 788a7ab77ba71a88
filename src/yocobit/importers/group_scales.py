"""Scales per group of columns: folding of equal scales, and selection of a format for them.

Letters: M output features   K input features   G groups in a row
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from yocobit.packing.formats import FORMATS, WeightFormat
from yocobit.packing.layout import Array, Floats
from yocobit.packing.scales import PerGroup, PerRow

TRITS = (-1, 0, 1)
COLUMNS = 128  # of the groups that have a format for all values


def fold(scales: Floats, columns: int, values: tuple[int, ...]) -> Floats:
    """Return the scales (M, G) of groups of `columns` as those of wider groups, or of rows.

    Neighbouring groups of fewer than COLUMNS are merged if their scales are equal in the whole
    matrix; wider groups are split. Trits whose scales are equal in each row have one per row, (M,).
    Weights with the scale 0 are 0 if `values` has 0, so this scale counts as equal to any other;
    that of a row of zeros is 1.
    """
    largest = scales.max(axis=1)
    if values == TRITS and _are_shared(scales, largest[:, None], values):
        return np.where(largest > 0, largest, np.float32(1))
    if columns > COLUMNS:
        scales = scales.repeat(-(-columns // COLUMNS), axis=1)
    while columns < COLUMNS:
        padded = np.pad(scales, ((0, 0), (0, scales.shape[1] % 2)), mode="edge")
        pairs = padded.reshape(len(scales), -1, 2)
        folded = pairs.max(axis=2)
        if not _are_shared(pairs, folded[..., None], values):
            break
        scales, columns = folded, 2 * columns
    return scales


def format_of(values: tuple[int, ...], scale: Array, K: int) -> WeightFormat | None:
    """Return the smallest weights-only format of these values and scales; None if none fits."""
    for format in _formats_of(values):
        granularity = format.scale
        if isinstance(granularity, PerRow) and scale.ndim == 1:
            return format
        if isinstance(granularity, PerGroup) and scale.shape[1:] == (-(-K // granularity.columns),):
            return format
    return None


def smallest_group(values: tuple[int, ...]) -> int:
    """Return the columns of the smallest groups that a format of these values has."""
    scales = (format.scale for format in _formats_of(values))
    return min(scale.columns for scale in scales if isinstance(scale, PerGroup))


def _formats_of(values: tuple[int, ...]) -> Iterator[WeightFormat]:
    """Yield the weights-only formats that have these values: the fewest bits, the widest groups."""

    def size(format: WeightFormat) -> tuple[int, int]:
        wide = format.scale.columns if isinstance(format.scale, PerGroup) else 0
        return format.bits, -wide

    for format in sorted(FORMATS.values(), key=size):
        if format.activations.group_columns is not None and set(values) <= set(format.values):
            yield format


def _are_shared(scales: Floats, shared: Floats, values: tuple[int, ...]) -> bool:
    """Whether scales are the shared ones, apart from those of weights that are 0."""
    are_equal = scales == shared
    return bool((are_equal | (scales == 0) if 0 in values else are_equal).all())
