"""Models to measure: a packed model, or any shape with random weights.

Speed does not depend on the values of weights.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from yocobit.benchmark.shapes import named_shape
from yocobit.config import ModelConfig
from yocobit.errors import UserError
from yocobit.hardware.host import available_bytes
from yocobit.packing import PackedModel, expected_tensors, read_model
from yocobit.packing.file_format import DTYPES, TensorSpec
from yocobit.packing.formats import TERNARY, projection_format
from yocobit.packing.layout import Array
from yocobit.packing.stored_parameters import StoredParameter, stored_parameters
from yocobit.packing.writer import write_model


@contextlib.contextmanager
def open_model(
    path: Path | None,
    shape: str | None,
    weights: str | None,
    head: str | None,
    attention: str | None = None,
    exact: bool = False,
) -> Iterator[tuple[str, PackedModel]]:
    """Yield a name and the packed model in `path`, or a temporary model of a named shape.

    `weights` and `head` are the formats of the temporary model, as in `yocobit pack`, by default
    "ternary" and "int8". `attention` and `exact` are as in Engine.load.
    """
    if path is not None:
        yield str(path), read_model(path).attending(attention).with_activations(exact)
        return
    weights = weights or TERNARY.name
    config = named_shape(shape or "").replace(weights=projection_format(weights).weights)
    if attention is not None:
        config = config.attending(attention)
    check_memory(config, weights, head, available_bytes())
    with tempfile.TemporaryDirectory() as directory:
        model = write_random_model(config, Path(directory) / "model", weights, head)
        yield f"{shape} with random weights", model.with_activations(exact)


def check_memory(
    config: ModelConfig, weights: str, head: str | None, available: int | None
) -> None:
    """Raise UserError if a model of that shape would exceed the available memory."""
    needed = sum(spec.size_bytes for spec in expected_tensors(config, weights, head).values())
    if available is not None and needed > available:
        raise UserError(
            f"--shape: this model needs {needed / 1e9:.1f} GB but {available / 1e9:.1f} GB of "
            "memory are available; choose a smaller one, or --weights ternary"
        )


def write_random_model(
    config: ModelConfig,
    directory: Path,
    weights: str | None = None,
    head: str | None = None,
    seed: int = 0,
    tokenizer: bytes | None = None,
) -> PackedModel:
    """Write a packed model of that shape with random weights into a new directory.

    `weights` and `head` are as in expected_tensors.
    """
    rng = np.random.default_rng(seed)
    parameters = stored_parameters(config, weights, head)
    tensors = (
        (tensor, _random(rng, stored, spec, tensor == name))
        for name, stored in parameters.items()
        for tensor, spec in stored.format.tensors(name, stored.shape).items()
    )
    return write_model(directory, config, parameters, tensors, tokenizer)


def _random(
    rng: np.random.Generator, stored: StoredParameter, spec: TensorSpec, is_weights: bool
) -> Array:
    """Return a random tensor of a parameter: its weights or its scales."""
    dtype = np.dtype(DTYPES[spec.dtype])
    if not is_weights:
        scale = stored.shape[-1] ** -0.5
        if stored.format.activations.group_columns is None:
            return np.full(spec.shape, scale, dtype)
        scales: Array = scale * (0.5 + rng.random(spec.shape, dtype=np.float32))
        return scales.astype(dtype)
    if stored.format.is_integer:
        codes = np.flatnonzero(stored.format.valid_bytes).astype(np.uint8)
        sampled: Array = codes[rng.integers(0, len(codes), spec.shape, dtype=np.uint8)]
        return sampled.view(dtype)
    if stored.role == "norm":
        return np.ones(spec.shape, dtype)
    values: Array = rng.standard_normal(spec.shape, dtype=np.float32) * spec.shape[-1] ** -0.5
    return values.astype(dtype)
