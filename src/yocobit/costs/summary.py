"""The numbers of a packed model: parameters, bytes, and what its caches need.

Letters: C d_model   G K/V heads   D head size   L layers
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

from yocobit import _native
from yocobit.config import BLOCK, ModelConfig
from yocobit.mixers import parameter_shapes
from yocobit.packing import PackedModel
from yocobit.packing.format import scale_name
from yocobit.packing.formats import FORMATS

# Bits of a cached value, and bytes of the scale of each position and head (engine/kv_cache.h).
CACHE_SIZES = {"f32": (32, 0), "f16": (16, 0), "int8": (8, 4), "int4": (4, 4)}
ENGINE_ROWS = _native.MAX_BATCH_TOKENS  # of one forward pass


@dataclasses.dataclass(frozen=True)
class Summary:
    """Sizes of a packed model; caches by their type, a key of CACHE_SIZES."""

    parameters: int
    parameters_by_part: dict[str, int]  # the final norm counts as head
    size_bytes: int  # of all tensors, padding and scales included
    size_bytes_by_kind: dict[str, int]
    bits_per_weight: float  # 8 size_bytes / parameters
    file_bytes: int  # of the safetensors file
    cache_bytes_per_token: dict[str, int]
    # Of a Transformer of the same shape: keys and values in every layer.
    transformer_cache_bytes_per_token: dict[str, int]
    # Of one session, whatever its length: retention states, and the ring of each window.
    state_bytes: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)


def summarize(model: PackedModel) -> Summary:
    """Compute the summary of a packed model from its configuration and tensors."""
    by_part = _parameters_by_part(model.config)
    parameters = sum(by_part.values())
    by_kind = _bytes_by_kind(model)
    size_bytes = sum(by_kind.values())
    return Summary(
        parameters=parameters,
        parameters_by_part=by_part,
        size_bytes=size_bytes,
        size_bytes_by_kind=by_kind,
        bits_per_weight=8 * size_bytes / parameters,
        file_bytes=model.file.stat().st_size,
        cache_bytes_per_token={kind: _cache_bytes(model.config, kind) for kind in CACHE_SIZES},
        transformer_cache_bytes_per_token={
            kind: len(model.config.layers) * _shared_bytes(model.config, kind)
            for kind in CACHE_SIZES
        },
        state_bytes={kind: _state_bytes(model.config, kind) for kind in CACHE_SIZES},
    )


def describe(model: PackedModel) -> list[str]:
    """Return the summary of a packed model as lines of text for people."""
    summary, config = summarize(model), model.config
    stack = ", ".join(
        f"{len(list(run))} {mixer}" for mixer, run in itertools.groupby(config.layers)
    )
    parts = summary.parameters_by_part.items()
    kinds = summary.size_bytes_by_kind.items()
    own, transformer = summary.cache_bytes_per_token, summary.transformer_cache_bytes_per_token
    lines = [
        f"model       {stack}; d_model {config.d_model}, d_ff {config.d_ff}, vocabulary "
        f"{config.vocab_size:,}; {config.weights} weights",
        f"parameters  {summary.parameters:,}: "
        + ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in parts if n),
        f"file        {summary.file_bytes:,} bytes: "
        + ", ".join(f"{kind} {size:,}" for kind, size in kinds if size)
        + f"; {summary.bits_per_weight:.2f} bits a parameter",
        "cache       " + _by_type(own) + " bytes a token",
    ]
    if own["f32"] < transformer["f32"]:
        ratio = f": {transformer['f32'] / own['f32']:.3g} times as much" if own["f32"] else ""
        lines.append(f"            {_by_type(transformer)} as a Transformer{ratio}")
    lines.append("state       " + _by_type(summary.state_bytes) + " bytes, however long the text")
    if config.attention not in (None, "full"):
        lines.append(f"attention   {config.attention}, unless another is asked for")
    return lines


def _by_type(sizes: dict[str, int]) -> str:
    if len(set(sizes.values())) == 1:
        return f"{sizes['f32']:,}"
    return ", ".join(f"{size:,} ({kind})" for kind, size in sizes.items())


def _parameters_by_part(config: ModelConfig) -> dict[str, int]:
    parts = ("embedding", "self_decoder", "shared_kv", "cross_decoder", "head")
    counts = dict.fromkeys(parts, 0)
    for name, shape in parameter_shapes(config).items():
        part = name.split(".")[0]
        if part == "layers":
            layer = int(name.split(".")[1])
            part = "self_decoder" if layer < config.n_self_layers else "cross_decoder"
        counts["head" if part == "norm" else part] += math.prod(shape)
    return counts


def _bytes_by_kind(model: PackedModel) -> dict[str, int]:
    sizes = dict.fromkeys((format.label for format in FORMATS.values()), 0)
    for name, stored in model.parameters.items():
        labels = {name: stored.format.label}
        if stored.format.scale is not None:
            labels[scale_name(name)] = stored.format.scale.dtype.lower()
        for tensor, label in labels.items():
            sizes[label] += model.tensors[tensor].end - model.tensors[tensor].begin
    return sizes


def _cache_bytes(config: ModelConfig, kind: str) -> int:
    n_caches = config.layers.count("full") + config.has_cross_decoder
    return n_caches * _shared_bytes(config, kind)


def _state_bytes(config: ModelConfig, kind: str) -> int:
    return retention_bytes(config) + ring_bytes(config, kind)


def retention_bytes(config: ModelConfig) -> int:
    """Return the bytes of the retention states of a session: [H][D][D] float32 in each layer."""
    return config.layers.count("retention") * 4 * config.d_model * config.self_head_dim


def ring_bytes(config: ModelConfig, kind: str) -> int:
    """Return the bytes of the windows of a session: whole tiles, with room for the tokens at
    work."""
    n_positions = -(-(config.window + ENGINE_ROWS) // BLOCK) * BLOCK
    position = position_bytes(config.n_self_kv_heads, config.self_head_dim, kind)
    return config.layers.count("window") * n_positions * position


def _shared_bytes(config: ModelConfig, kind: str) -> int:
    return position_bytes(config.n_kv_heads, config.head_dim, kind)


def position_bytes(G: int, D: int, kind: str) -> int:
    """Return the bytes of K and V of one position."""
    bits, scale = CACHE_SIZES[kind]
    stored = -(-D // 16) * 16 if kind == "int4" else D  # its blocks are whole
    return 2 * G * (stored * bits // 8 + scale)
