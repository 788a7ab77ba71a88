"""Matrices of weights-only quantisation (A16): the format of a tensor, its integers and scales.

The format follows from the file, so that nothing is rounded: from the integers that occur, and from
the number of neighbouring weights that share a scale.

Letters: M output features   K input features   N scales of a row
"""

from __future__ import annotations

import numpy as np

from yocobit.importers.checkpoint import IntegerMatrix
from yocobit.importers.gguf.container import GGUFFile, TensorInfo
from yocobit.importers.gguf.tensor_types import TensorType, has_twos, read_integers, read_scales
from yocobit.packing.formats import (
    INT2_G64,
    INT2_G128,
    ODD_G128,
    SIGN_G128,
    TERNARY_G64,
    TERNARY_G128,
    TERNARY_ROW_A16,
    WeightFormat,
)
from yocobit.packing.layout import Floats
from yocobit.packing.scales import PerGroup


def format_of(file: GGUFFile, tensor: TensorInfo, type: TensorType) -> WeightFormat:
    """Return the format that stores a tensor of a type with codes exactly.

    ConfigError for a scale that is negative or not finite.
    """
    assert type.codes is not None
    scales = _scales(file, tensor, type)
    if -3 in type.codes.values:
        return ODD_G128
    if 0 not in type.codes.values:
        return SIGN_G128
    is_int2 = has_twos(file, tensor, type)
    if not is_int2 and _are_shared(scales):
        return TERNARY_ROW_A16
    if type.block >= TERNARY_G128.block_columns or _are_shared(_pairs(scales)):
        return INT2_G128 if is_int2 else TERNARY_G128
    return INT2_G64 if is_int2 else TERNARY_G64


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
    if not isinstance(format.scale, PerGroup):
        of_rows = scales.max(axis=1)
        return IntegerMatrix(integers, np.where(of_rows > 0, of_rows, np.float32(1)))
    if format.scale.columns > type.block:
        return IntegerMatrix(integers, _pairs(scales).max(axis=2))
    return IntegerMatrix(integers, scales.repeat(type.block // format.scale.columns, axis=1))


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


def _pairs(scales: Floats) -> Floats:
    """Return the scales (M, N / 2, 2) of two neighbouring groups; the last one may have none."""
    padded = np.pad(scales, ((0, 0), (0, scales.shape[1] % 2)))
    return padded.reshape(len(scales), -1, 2)


def _are_shared(scales: Floats) -> bool:
    """Whether the scales along the last axis are equal, apart from those of groups of zeros."""
    return bool(((scales == scales.max(axis=-1, keepdims=True)) | (scales == 0)).all())
