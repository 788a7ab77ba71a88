"""Packed models with random weights, norms and biases, for tests of exporters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from yocobit.config import ModelConfig
from yocobit.packing import PackedModel
from yocobit.packing.file_format import scale_name
from yocobit.packing.formats import formats_of
from yocobit.packing.scales import PerGroup
from yocobit.packing.stored_parameters import StoredParameter, stored_parameters
from yocobit.packing.writer import write_model

SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "d_model": 256,
    "layers": ("full",) * 2,
    "d_ff": 512,
    "n_heads": 4,
    "n_kv_heads": 2,
    "n_self_heads": 4,
    "n_self_kv_heads": 2,
    "full_rope": "half",
    "scale_embedding": False,
    "sub_norm": False,
    "trained_context": 4096,  # which every file of another format names
}
TOKENS = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], 40).tolist()


def random_model(
    path: Path,
    head: str | None = None,
    projections: str | None = None,
    text: tuple[bytes | None, dict[str, Any], bytes | None] = (None, {}, None),
    scale_dtype: str = "<f4",
    scale_factor: float = 1.0,
    low_bit_tables: bool = False,
    **changes: Any,
) -> PackedModel:
    """Write a model of SHAPE with `changes`; scales of integers are of the dtype `scale_dtype`.

    Those of projections are about 0.06 times `scale_factor`. Embedding and head may have the
    format of projections.
    """
    config = ModelConfig(**{**SHAPE, **changes})
    tables = ["embedding.weight", *([] if config.tie_embeddings else ["head.weight"])]
    format = formats_of(config.weights)[0]
    formats = dict.fromkeys(tables, format) if low_bit_tables else None
    parameters = stored_parameters(config, projections, head, formats)
    rng = np.random.default_rng(0)

    def tensors():
        for name, stored in parameters.items():
            yield from _tensors(rng, name, stored, scale_dtype, scale_factor)

    return write_model(path, config, parameters, tensors(), *text)


def _tensors(
    rng: np.random.Generator,
    name: str,
    stored: StoredParameter,
    scale_dtype: str,
    scale_factor: float,
):
    format, shape = stored.format, stored.shape
    if stored.role == "norm":
        yield name, rng.uniform(0.5, 1.5, shape).astype(np.float32)
    elif stored.role in ("bias", "float"):
        yield name, rng.uniform(-0.2, 0.2, shape).astype(np.float32)
    elif format.quantize is not None:
        codes, scales = format.quantize(rng.normal(0, 0.05, shape).astype(np.float32))
        yield name, codes
        if scales is not None:
            yield scale_name(name), scales.astype(scale_dtype).astype(scales.dtype)
    else:
        yield name, format.encode(rng.choice(np.array(format.values, dtype=np.int8), shape))
        if isinstance(format.scale, PerGroup):
            scales = rng.uniform(0.05, 0.07, (shape[0], -(-shape[1] // format.scale.columns)))
            yield scale_name(name), format.scale.encode(scales.astype(np.float16))
            return
        scales = scale_factor * rng.uniform(0.05, 0.07, format.scale.shape(*shape))
        yield scale_name(name), scales.astype(scale_dtype).astype(np.float32)
