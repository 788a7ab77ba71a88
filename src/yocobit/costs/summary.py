"""Summary of a packed model: parameters, sizes by format, KV cache and recurrent state."""

from __future__ import annotations

import dataclasses
import itertools
import math
import textwrap
from collections.abc import Iterable
from typing import Any

from yocobit.config import ModelConfig
from yocobit.costs.memory import (
    CACHE_FORMATS,
    kv_bytes_per_token,
    recurrent_bytes,
    window_bytes,
)
from yocobit.costs.traffic import multiply_adds
from yocobit.mixers import MIXERS, parameter_shapes
from yocobit.packing import PackedModel
from yocobit.packing.file_format import scale_name
from yocobit.packing.formats import FORMATS

_LABEL = 12  # columns


@dataclasses.dataclass(frozen=True)
class Summary:
    """Sizes of a packed model; cache sizes are keyed by cache type (CACHE_FORMATS)."""

    parameters: int
    active_parameters: int  # used by a token in multiplications: no lookups, active experts only
    parameters_by_part: dict[str, int]  # the final norm counts as head
    size_bytes: int  # of all tensors, padding and scales included
    size_bytes_by_kind: dict[str, int]
    bits_per_weight: float  # 8 size_bytes / parameters
    file_bytes: int  # of the safetensors file
    cache_bytes_per_token: dict[str, int]
    # The same for a Transformer of this shape, which has a KV cache in every layer.
    transformer_cache_bytes_per_token: dict[str, int]
    # Recurrent states and sliding-window caches of one session, independent of its length.
    state_bytes: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)


def summarize(model: PackedModel) -> Summary:
    """Compute the summary of a packed model from its configuration and tensors."""
    config = model.config
    transformer = config.replace(layers=("full",) * len(config.layers))
    by_part = _parameters_by_part(config)
    parameters = sum(by_part.values())
    by_kind = _bytes_by_kind(model)
    size_bytes = sum(by_kind.values())
    return Summary(
        parameters=parameters,
        active_parameters=multiply_adds(config, 1, 1),
        parameters_by_part=by_part,
        size_bytes=size_bytes,
        size_bytes_by_kind=by_kind,
        bits_per_weight=8 * size_bytes / parameters,
        file_bytes=model.file.stat().st_size,
        cache_bytes_per_token={cache: kv_bytes_per_token(config, cache) for cache in CACHE_FORMATS},
        transformer_cache_bytes_per_token={
            cache: kv_bytes_per_token(transformer, cache) for cache in CACHE_FORMATS
        },
        state_bytes={
            cache: recurrent_bytes(config) + window_bytes(config, cache) for cache in CACHE_FORMATS
        },
    )


def folded(lines: Iterable[str], width: int | None) -> str:
    """Return lines with labels as text, wrapped at words to `width` columns, unless it is None."""
    if width is None:
        return "\n".join(lines)
    return "\n".join(
        textwrap.fill(
            line,
            max(width, 2 * _LABEL),
            subsequent_indent=" " * _LABEL,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in lines
    )


def describe(model: PackedModel) -> list[str]:
    """Return the summary of a packed model as lines of text."""
    summary, config = summarize(model), model.config
    stack = ", ".join(
        f"{len(list(run))} {mixer}" for mixer, run in itertools.groupby(config.layers)
    )
    parts = summary.parameters_by_part.items()
    kinds = summary.size_bytes_by_kind.items()
    own, transformer = summary.cache_bytes_per_token, summary.transformer_cache_bytes_per_token
    lines = [
        f"summary     {rounded(summary.parameters)} parameters, {config.weights} weights, "
        f"{summary.file_bytes / 1e6:,.1f} MB",
        f"model       {stack}; d_model {config.d_model}, d_ff {config.d_ff}, vocabulary "
        f"{config.vocab_size:,}; {config.weights} weights",
        f"parameters  {summary.parameters:,}: "
        + ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in parts if n),
        *_experts(summary, config),
        f"file        {summary.file_bytes:,} bytes: "
        + ", ".join(f"{kind} {size:,}" for kind, size in kinds if size)
        + f"; {summary.bits_per_weight:.2f} bits per parameter",
        "KV cache    " + _by_type(own) + " bytes per token",
    ]
    if own["f32"] < transformer["f32"]:
        ratio = f": {transformer['f32'] / own['f32']:.3g} times as much" if own["f32"] else ""
        lines.append(f"            {_by_type(transformer)} as a Transformer{ratio}")
    lines.append(
        "state       " + _by_type(summary.state_bytes) + " bytes per sequence, of any length"
    )
    features = [_feature(*each) for each in config.features().items() if _is_used(each[0], config)]
    if features:
        lines.append("features    " + ", ".join(features))
    if config.attention not in (None, "full"):
        lines.append(f"attention   {config.attention} by default")
    return lines


def _experts(summary: Summary, config: ModelConfig) -> list[str]:
    if not config.n_experts:
        return []
    total, active = map(rounded, (summary.parameters, summary.active_parameters))
    return [
        f"            {total}, {active} active: {summary.active_parameters:,} multiply each token, "
        f"{config.n_active_experts} of {config.n_experts} experts in each layer"
    ]


def rounded(n: int) -> str:
    """Return a number of parameters with two or three digits, such as 1.2B or 135M."""
    value, unit = (n / 1e9, "B") if n >= 999.5e6 else (n / 1e6, "M")
    return f"{value:.2g}{unit}" if value < 99.5 else f"{value:.0f}{unit}"


def _is_used(name: str, config: ModelConfig) -> bool:
    """Whether the model has layers that a feature applies to."""
    mixer = name.removesuffix("_rope_frequencies")
    return mixer == name or mixer in config.layers


def _feature(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name
    return f"{len(value)} {name}" if isinstance(value, list) else f"{name} {value}"


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
            mixer = MIXERS[config.layers[int(name.split(".")[1])]]
            part = f"{mixer.decoder}_decoder"
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
