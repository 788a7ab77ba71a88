"""Conversion of a checkpoint: published integers and scales are stored as they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from yocobit.config import ConfigError, preset
from yocobit.importers import IntegerMatrix
from yocobit.importers.convert import stored_tensors
from yocobit.packing.formats import TERNARY, PerGroup, PerRow, StoredParameter

NAME = "layers.0.ffn.up_proj.weight"
GROUPS = replace(TERNARY, name="groups", scale=PerGroup(128, "F16"))
ROWS = replace(TERNARY, name="rows", scale=PerRow("F32"))
SHAPE = (13, 330)


class OneMatrix:
    """A checkpoint with one matrix."""

    path = Path("source")
    config = preset("nano")

    def __init__(self, matrix: IntegerMatrix) -> None:
        self._matrix = matrix

    def read(self, name, shape):
        return self._matrix


def integers() -> np.ndarray:
    return np.random.default_rng(0).integers(-1, 2, SHAPE).astype(np.int8)


def tensors(matrix: IntegerMatrix, format) -> dict[str, np.ndarray]:
    parameters = {NAME: StoredParameter(format, SHAPE, "projection")}
    return dict(stored_tensors(OneMatrix(matrix), parameters))


@pytest.mark.parametrize(
    ("format", "scale"),
    [
        (GROUPS, np.linspace(-1, 1, 39).reshape(13, 3).astype(np.float16)),
        (GROUPS, np.exp2(-np.arange(39)).clip(2**-24).reshape(13, 3).astype(np.float32)),
        (ROWS, np.linspace(0.1, 1, 13).astype(np.float32)),
        (ROWS, np.array([0.3], dtype=np.float32)),
        (TERNARY, np.array([0.3], dtype=np.float32)),
    ],
)
def test_stored_integers_and_scales_are_those_published(format, scale):
    matrix = IntegerMatrix(integers(), scale)

    stored = tensors(matrix, format)

    for name, spec in format.tensors(NAME, SHAPE).items():
        assert stored[name].shape == spec.shape
    columns = np.repeat(scale, 128, axis=1)[:, :330] if scale.ndim == 2 else scale[:, None]
    np.testing.assert_array_equal(
        format.dequantize(*stored.values(), *SHAPE), matrix.integers * columns.astype(np.float32)
    )


@pytest.mark.parametrize("scale", [0.1, 1e5, 2**-25])
def test_scale_that_float16_does_not_hold_is_refused_with_its_tensor(scale):
    scales = np.full((13, 3), 0.25, dtype=np.float32)
    scales[7, 1] = scale

    with pytest.raises(
        ConfigError, match=f"^source: tensor '{NAME}' must have scales .* {scale:g};"
    ):
        tensors(IntegerMatrix(integers(), scales), GROUPS)
