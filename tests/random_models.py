"""Small packed models with random weights in any mix of formats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from yocobit.config import ModelConfig
from yocobit.mixers import model_parameters
from yocobit.packing import PackedModel
from yocobit.packing.file_format import DTYPES, TensorInfo, scale_name
from yocobit.packing.formats import FORMATS
from yocobit.packing.stored_parameters import StoredParameter


def write(
    directory: Path,
    config: ModelConfig,
    projections: str,
    embedding: str,
    head: str,
    floats: Mapping[str, np.ndarray] | None = None,
    formats: Mapping[str, str] | None = None,
) -> PackedModel:
    """Write random tensors in any mix of formats; return them as a packed model.

    `floats` replace tensors of float32, `formats` the formats of single matrices.
    """
    rng = np.random.default_rng(0)  # a seed from `config` would change with each new field
    of_role = {"projection": projections, "embedding": embedding, "head": head}
    parameters = {}
    for name, p in model_parameters(config).items():
        format = (formats or {}).get(name, of_role.get(p.role, "f32"))
        parameters[name] = StoredParameter(FORMATS[format], p.shape, p.role)
    file, content, tensors = directory / "tensors", b"", {}
    for name, stored in parameters.items():
        for tensor, array in random_tensors(name, stored, rng).items():
            content += bytes(-len(content) % 64)
            array = (floats or {}).get(tensor, array)
            dtype, shape = stored.format.tensors(name, stored.shape)[tensor]
            assert array.shape == shape
            tensors[tensor] = TensorInfo(dtype, shape, len(content), len(content) + array.nbytes)
            content += array.tobytes()
    file.write_bytes(content)
    return PackedModel(config, directory, file, parameters, tensors, {})


def random_tensors(
    name: str, stored: StoredParameter, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    format, shape = stored.format, stored.shape
    if stored.role in ("norm", "bias"):
        centre = 1.0 if stored.role == "norm" else 0.0
        return {name: (centre + 0.3 * rng.standard_normal(shape)).astype(np.float32)}
    if format.quantize is None:
        codes = format.encode(rng.choice(np.array(format.values, np.int8), shape))
        size = shape[1] ** -0.5
        scales = rng.uniform(size, 2 * size, format.scale.shape(*shape))
        scales = scales.astype(DTYPES[format.scale.dtype])
    else:
        weights = rng.standard_normal(shape) * shape[1] ** -0.5
        codes, scales = format.quantize(weights.astype(np.float32))
    return {name: codes} | ({} if scales is None else {scale_name(name): scales})


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return np.abs(found - expected).max() / np.abs(expected).max()
