"""Packed models of any shape with random weights: what speed needs, without training anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from yocobit.config import ModelConfig
from yocobit.packing import PackedModel, expected_tensors
from yocobit.packing.writer import write_model

# Bytes of four 2-bit codes without the invalid code 3.
_TERNARY_BYTES = np.array(
    [a + 4 * b + 16 * c + 64 * d for a in range(3) for b in range(3) for c in range(3)
     for d in range(3)], dtype=np.uint8)  # fmt: skip


def write_random_model(
    config: ModelConfig, directory: Path, head: str = "int8", seed: int = 0
) -> PackedModel:
    """Write a packed model of that shape into a new directory, without a tokenizer."""
    rng = np.random.default_rng(seed)
    tensors = {
        name: _random(rng, name, dtype, shape, config)
        for name, (dtype, shape) in expected_tensors(config, head=head).items()
    }
    return write_model(directory, config, tensors, None, {})


def _random(
    rng: np.random.Generator, name: str, dtype: str, shape: tuple[int, ...], config: ModelConfig
) -> np.ndarray:
    if dtype == "U8" and config.weights == "ternary" and not name.startswith("head."):
        return _TERNARY_BYTES[rng.integers(0, 81, shape, dtype=np.uint8)]
    if dtype in ("U8", "I8"):
        return rng.integers(0, 256, shape, dtype=np.uint8).view(
            np.uint8 if dtype == "U8" else np.int8
        )
    if name.endswith("_scale"):
        return np.full(shape, config.d_model**-0.5, np.float16 if dtype == "F16" else np.float32)
    if len(shape) == 1:
        return np.ones(shape, dtype=np.float32)
    values = rng.standard_normal(shape, dtype=np.float32) * shape[-1] ** -0.5
    return values.astype(np.float16 if dtype == "F16" else np.float32)
