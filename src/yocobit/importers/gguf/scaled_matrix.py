"""Matrices of weights-only quantisation (A16): the format of a tensor, its integers and scales.

Nothing is rounded: the format follows from the integers that occur, and from the number of
neighbouring weights that share a scale (group_scales.py).

Letters: M output features   K input features   N scales of a row
"""

from __future__ import annotations

import numpy as np

from yocobit.importers import group_scales
from yocobit.importers.checkpoint import IntegerMatrix
from yocobit.importers.gguf.container import GGUFFile, TensorInfo
from yocobit.importers.gguf.tensor_types import TensorType, has_twos, read_integers, read_scales
from yocobit.importers.group_scales import TRITS, fold
from yocobit.packing.formats import WeightFormat
from yocobit.packing.layout import Floats


def format_of(file: GGUFFile, tensor: TensorInfo, type: TensorType) -> WeightFormat:
    """Return the format that stores a tensor of a type with codes exactly.

    ConfigError for a scale that is negative or not finite.
    """
    assert type.codes is not None
    scales, values = _scales(file, tensor, type), tuple(type.codes.values)
    if 2 in values and not has_twos(file, tensor, type):
        values = TRITS
    format = group_scales.format_of(values, fold(scales, type.block, values), tensor.shape[-1])
    assert format is not None  # all types have groups of at least 64 columns
    return format


def read_matrix(
    file: GGUFFile, tensor: TensorInfo, type: TensorType, format: WeightFormat
) -> IntegerMatrix:
    """Return a tensor as a matrix (M, K) of `format`, which is that of format_of.

    The weights of a group whose scale is 0 become 0 if the format has that value.
    """
    integers = read_integers(file, tensor, type).integers.reshape(-1, tensor.shape[-1])
    scales = _scales(file, tensor, type)
    if 0 in format.values and (scales == 0).any():
        integers.reshape(*scales.shape, -1)[scales == 0] = 0
    return IntegerMatrix(integers, fold(scales, type.block, tuple(format.values)))


def _scales(file: GGUFFile, tensor: TensorInfo, type: TensorType) -> Floats:
    """Return the scales (M, N)."""
    scales = read_scales(file, tensor, type).reshape(-1, tensor.shape[-1] // type.block)
    bad = ~np.isfinite(scales) | (scales < 0)
    if bad.any():
        raise file.error(
            f"tensor '{tensor.name}' must have finite scales of at least 0 but has "
            f"{scales[bad][0]:g}; choose another file of the model"
        )
    return scales
