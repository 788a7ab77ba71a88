"""Float tensors of a checkpoint, of the expected shape, in float32."""

from __future__ import annotations

import numpy as np

from yocobit.errors import ConfigError
from yocobit.packing.layout import Array, Floats
from yocobit.packing.tensor_source import SafetensorsDirectory


def read_floats(tensors: SafetensorsDirectory, name: str, shape: tuple[int, ...]) -> Floats:
    """Read a tensor; ConfigError names it unless it is finite floats of this shape.

    A tensor without axes may stand for one with a single value.
    """
    values = tensors.read(name)
    return checked(tensors, name, values.reshape(1) if values.shape == () else values, shape)


def checked(
    tensors: SafetensorsDirectory, name: str, values: Array, shape: tuple[int, ...]
) -> Floats:
    """Return the values of a tensor in float32; ConfigError as read_floats."""
    if values.shape != shape or values.dtype.kind != "f":
        raise ConfigError(
            f"{tensors.path}: tensor '{name}' must be floats of shape {list(shape)} but is "
            f"{values.dtype} of {list(values.shape)}"
        )
    with np.errstate(over="ignore"):  # of float64
        floats = values.astype(np.float32, copy=False)
    if not np.isfinite(floats).all():
        raise ConfigError(f"{tensors.path}: tensor '{name}' must be finite but is not")
    return floats
