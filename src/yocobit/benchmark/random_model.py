"""The model to measure: one from disk, or of any shape with random weights, which are as fast."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from yocobit.benchmark.plan import BenchmarkError
from yocobit.benchmark.shapes import named_shape
from yocobit.config import ModelConfig
from yocobit.hardware.machine import available_bytes
from yocobit.packing import PackedModel, expected_tensors, read_model
from yocobit.packing.reader import ITEM_BYTES
from yocobit.packing.writer import Array, write_model

# Bytes of four 2-bit codes without the invalid code 3.
_TERNARY_BYTES = np.array(
    [a + 4 * b + 16 * c + 64 * d for a in range(3) for b in range(3) for c in range(3)
     for d in range(3)], dtype=np.uint8)  # fmt: skip


@contextlib.contextmanager
def open_model(
    path: Path | None,
    shape: str | None,
    weights: str | None,
    head: str | None,
    attention: str | None = None,
) -> Iterator[tuple[str, PackedModel]]:
    """Give a name and the packed model in `path`, or one of a named shape that is gone afterwards.

    `weights` and `head` of the latter are as for packing, "ternary" and "int8" unless given;
    `attention` is as for Engine.load.
    """
    if path is not None:
        yield str(path), read_model(path).attending(attention)
        return
    weights, head = weights or "ternary", head or "int8"
    is_dense = weights in ("f32", "f16")
    config = named_shape(shape or "").replace(weights="dense" if is_dense else weights)
    if attention is not None:
        config = config.attending(attention)
    float_dtype = weights.upper() if is_dense else "F32"
    check_memory(config, float_dtype, head, available_bytes())
    with tempfile.TemporaryDirectory() as directory:
        model = write_random_model(config, Path(directory) / "model", head, float_dtype)
        yield f"{shape} with random weights", model


def check_memory(config: ModelConfig, float_dtype: str, head: str, available: int | None) -> None:
    """Raise BenchmarkError if a model to be made is larger than the memory that is available."""
    expected = expected_tensors(config, float_dtype, head).values()
    needed = sum(math.prod(shape) * ITEM_BYTES[dtype] for dtype, shape in expected)
    if available is not None and needed > available:
        raise BenchmarkError(
            f"--shape: this model needs {needed / 1e9:.1f} GB but {available / 1e9:.1f} GB of "
            "memory are available; choose a smaller one, or --weights ternary"
        )


def write_random_model(
    config: ModelConfig,
    directory: Path,
    head: str = "int8",
    float_dtype: str = "F32",
    seed: int = 0,
    tokenizer: bytes | None = None,
) -> PackedModel:
    """Write a packed model of that shape into a new directory, with a tokenizer.json if given."""
    rng = np.random.default_rng(seed)
    tensors = {
        name: _random(rng, name, dtype, shape, config)
        for name, (dtype, shape) in expected_tensors(config, float_dtype, head).items()
    }
    return write_model(directory, config, tensors, tokenizer, {})


def _random(
    rng: np.random.Generator, name: str, dtype: str, shape: tuple[int, ...], config: ModelConfig
) -> Array:
    if dtype == "U8" and config.weights == "ternary" and not name.startswith("head."):
        codes: Array = _TERNARY_BYTES[rng.integers(0, 81, shape, dtype=np.uint8)]
        return codes
    if dtype in ("U8", "I8"):
        return rng.integers(0, 256, shape, dtype=np.uint8).view(
            np.uint8 if dtype == "U8" else np.int8
        )
    if name.endswith("_scale"):
        return np.full(shape, config.d_model**-0.5, np.float16 if dtype == "F16" else np.float32)
    if len(shape) == 1:
        return np.ones(shape, dtype=np.float32)
    values: Array = rng.standard_normal(shape, dtype=np.float32) * shape[-1] ** -0.5
    return values.astype(np.float16 if dtype == "F16" else np.float32)
