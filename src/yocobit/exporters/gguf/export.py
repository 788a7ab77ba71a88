"""Export of a packed model to a GGUF file that llama.cpp runs, one tensor at a time.

Trits and integers stay as they are; GGUF stores their scales in float16.

Letters: M rows   K columns   D head size
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from yocobit import disk
from yocobit.config import ModelConfig
from yocobit.errors import ConfigError
from yocobit.exporters.gguf import blocks
from yocobit.exporters.gguf.architectures import architecture_for, architecture_metadata
from yocobit.exporters.gguf.container import TensorSpec, write_gguf
from yocobit.exporters.gguf.sentencepiece import differences
from yocobit.exporters.gguf.tokenizer import MAX_END_TOKENS, tokenizer_metadata
from yocobit.exporters.rules import (
    context_length,
    frequency_divisors,
    with_rope_in_halves,
)
from yocobit.exporters.weights import Weights
from yocobit.importers.gguf.architectures import (
    NO_SINK,
    ROPE_FACTORS,
    SINKS,
    Architecture,
    tensor_name,
    tensor_shape,
)
from yocobit.importers.gguf.container import MAGIC
from yocobit.importers.gguf.tensor_types import TYPES, TensorType
from yocobit.importers.gguf.text import SAMPLING_KEYS
from yocobit.importers.row_order import in_pairs
from yocobit.packing import layout
from yocobit.packing.file_format import CHAT_TEMPLATE, GENERATION, TOKENIZER, scale_name
from yocobit.packing.layout import Array, Codes, Int8s
from yocobit.packing.reader import PackedModel
from yocobit.packing.scales import PerGroup
from yocobit.reading import boundary, read_json, read_text
from yocobit.text import GenerationConfig, read_generation_config

_TERNARY: dict[str, Callable[[Int8s, Array], Codes]] = {
    "tq2_0": blocks.tq2_0,
    "tq1_0": blocks.tq1_0,
}
_DEFAULT_TYPE = "tq2_0"  # of ternary matrices
# The types of formats with scales of groups, and how they are packed.
_GROUPED_TYPES = {
    "ternary_g64": "q2_0",
    "ternary_g128": "q2_0",
    "int2_g64": "q2_0",
    "int2_g128": "q2_0",
    "sign_g128": "q1_0",
}
_GROUPED = {"q2_0": blocks.q2_0, "q1_0": blocks.q1_0}
_TYPES = {each.name.lower(): each for each in TYPES}
# general.file_type
_FILE_TYPES = {"f32": 0, "f16": 1, "tq1_0": 36, "tq2_0": 37, "q1_0": 40, "q2_0": 41}
_TABLE_TYPES = {"int8": "q8_0", "int4": "q4_0"}
_QUANTIZATION_VERSION = 2  # of ggml
_EXPORTED, _START_BYTES = "yocobit.exported", 4096  # a key in the start of each file
_NO_TOKENIZER = {"tokenizer.ggml.model": "no_vocab"}


def export_gguf(
    model: PackedModel,
    out: Path,
    weights: str = _DEFAULT_TYPE,
    tables: str | None = None,
    context: int | None = None,
) -> list[str]:
    """Write a model as the GGUF file `out`; return the differences from the model, one line each.

    `weights` is the tensor type of ternary matrices with one scale or one per row, "tq2_0" or
    "tq1_0"; those with scales of groups become Q2_0 and Q1_0. `tables` is the type of an int8 or
    int4 embedding and head: "f16", "f32", or None for Q8_0 and Q4_0 with the stored integers.
    `context` is the context length that the file names, by default the trained one or 4096.
    ConfigError for what llama.cpp cannot compute.
    """
    disk.claim_file(out, _is_own, "a GGUF file that yocobit exported")
    config = with_rope_in_halves(model.config, model.path)
    architecture = architecture_for(config, model.path)
    has_experts, n_experts = architecture.has_experts, config.n_experts
    specs = {
        tensor_name(name, has_experts): TensorSpec(
            _type(model, name, weights, tables), tensor_shape(name, stored.shape, n_experts)
        )
        for name, stored in model.parameters.items()
    }
    types = {spec.type.name.lower() for spec in specs.values()}
    if weights != _DEFAULT_TYPE and weights not in types and types & _GROUPED.keys():
        raise ConfigError(
            f"{model.path}: type must be left out but is {weights}: it is of ternary matrices with "
            "one scale or one per row, and this model has scales of groups, for Q1_0 or Q2_0"
        )
    if _has_divisors(config, architecture):
        specs[ROPE_FACTORS[0]] = TensorSpec(_TYPES["f32"], (config.head_dim // 2,))
    if architecture.has_sinks:
        shape = (config.n_heads,)
        for i in range(len(config.layers)):
            specs[f"blk.{i}.{SINKS}"] = TensorSpec(_TYPES["f32"], shape)
    up_proj = tensor_name("layers.0.ffn.up_proj.weight", has_experts)
    projection = specs[up_proj].type.name.lower()
    generation = _generation(model)
    metadata = {
        "general.architecture": architecture.name,
        "general.name": model.path.resolve().name,
        "general.file_type": _FILE_TYPES[projection],
        "general.quantization_version": _QUANTIZATION_VERSION,
        _EXPORTED: True,
        **{SAMPLING_KEYS[name]: value for name, value in generation.sampling.items()},
        **architecture_metadata(config, architecture, context_length(config, context)),
        **_text(model, generation),
    }
    notes = [*_rounding(model, specs, has_experts), *_omissions(model, generation)]
    with disk.replacing(out) as partial:
        write_gguf(partial, metadata, specs, _data(model, specs, architecture))
    return notes


def _is_own(content: bytes) -> bool:
    """Whether a file is an earlier export, not a model that was downloaded."""
    return content.startswith(MAGIC) and _EXPORTED.encode() in content[:_START_BYTES]


def _type(model: PackedModel, name: str, weights: str, tables: str | None) -> TensorType:
    """Return the tensor type of a parameter; ConfigError if its rows are not whole blocks."""
    format, shape = model.parameters[name].format, model.parameters[name].shape
    if format.name in _TABLE_TYPES:
        kind = tables or _TABLE_TYPES[format.name]
    elif isinstance(format.scale, PerGroup):
        if format.name not in _GROUPED_TYPES:
            raise ConfigError(
                f"{model.path}: format of '{name}' must be {' or '.join(_GROUPED_TYPES)} for GGUF "
                f"but is {format.name}, for which llama.cpp has no tensor type"
            )
        kind = _GROUPED_TYPES[format.name]
    else:
        kind = weights if format.is_integer else format.name
    type = _TYPES[kind]
    if shape[-1] % type.block:
        remedy = "; choose --head f32" if format.name in _TABLE_TYPES else ""
        raise ConfigError(
            f"{model.path}: rows of '{name}' must be a multiple of {type.block} for {type.name} "
            f"but have {shape[-1]}{remedy}"
        )
    return type


def _data(
    model: PackedModel, specs: Mapping[str, TensorSpec], architecture: Architecture
) -> Iterator[Iterator[Array]]:
    """Yield the data of each tensor, in pieces of bytes."""
    weights = Weights(model, in_halves=True)
    for name in model.parameters:
        kind = specs[tensor_name(name, architecture.has_experts)].type.name.lower()
        pieces = _pieces(weights, name, kind)
        part = name.rpartition("mixer.")[2].partition(".")[0]
        if architecture.permutes and part in ("q_proj", "k_proj"):
            pieces = iter([in_pairs(np.concatenate(list(pieces)), model.config.head_dim)])
        yield pieces
    if _has_divisors(model.config, architecture):
        yield iter([frequency_divisors(model.config)])
    if architecture.has_sinks:
        for _ in model.config.layers:
            yield iter([np.full(model.config.n_heads, NO_SINK, dtype=np.float32)])


def _has_divisors(config: ModelConfig, architecture: Architecture) -> bool:
    """Whether a tensor has the divisors of frequencies; other architectures have keys for them."""
    return architecture.permutes and bool(config.full_rope_frequencies)


def _pieces(weights: Weights, name: str, kind: str) -> Iterator[Array]:
    """Yield the rows of a parameter in a tensor type, in pieces."""
    if kind in _TERNARY:
        yield _TERNARY[kind](*weights.matrix(name))
    elif kind in _GROUPED:
        integers, scales = weights.matrix(name)
        n_blocks = integers.shape[1] // _TYPES[kind].block
        # A scale of 128 columns is written for both halves; a last group may have one.
        repeats = -(-n_blocks // scales.shape[1])
        yield _GROUPED[kind](integers, scales.repeat(repeats, axis=1)[:, :n_blocks])
    elif kind == "q8_0":
        for integers, scales in weights.int8_rows(name):
            yield blocks.q8_0(integers, scales)
    elif kind == "q4_0":
        codes, scales = weights.int4_codes(name)
        yield blocks.q4_0(codes, scales.repeat(2, axis=1)[:, : codes.shape[1] // 32])
    else:
        for rows in weights.floats(name):
            yield rows if kind == "f32" else layout.to_float16(rows)


def _rounding(
    model: PackedModel, specs: Mapping[str, TensorSpec], has_experts: bool
) -> Iterator[str]:
    """Yield a line for each kind of rounding; ConfigError for scales out of float16's range."""
    weights = Weights(model)
    errors: dict[str, float] = {}  # the largest relative one, by parts of the model
    halved = []
    for name, stored in model.parameters.items():
        kind = specs[tensor_name(name, has_experts)].type.name.lower()
        is_table = stored.format.name in _TABLE_TYPES
        if kind == "f16" and stored.format.name != "f16":
            halved.append(stored.role)
        elif kind in _TERNARY or kind == "q8_0":
            part = "embedding and head" if is_table else "projections"
            error = _scale_error(weights, name, must_be_normal=not is_table)
            errors[part] = max(errors.get(part, 0.0), error)
    for part, error in errors.items():
        remedy = "; --head f32 rounds nothing" if part == "embedding and head" else ""
        if error > 0:
            yield (
                f"scales of {part} are rounded to float16, by at most {100 * error:.2g} %{remedy}"
            )
    if halved:
        yield f"{' and '.join(halved)} are rounded to float16"


def _scale_error(weights: Weights, name: str, must_be_normal: bool) -> float:
    """Return the largest relative error of scales in float16, except for rows of zeros."""
    scales = weights.stored(scale_name(name)).astype(np.float32)
    scales = scales[scales > layout.SMALLEST_SCALE]
    if scales.size == 0:
        return 0.0
    limits = np.finfo(np.float16)
    least = limits.smallest_normal if must_be_normal else 0
    if not least <= scales.min() <= scales.max() <= limits.max:
        raise ConfigError(
            f"{weights.file}: scales of '{name}' must be from {least:.2g} to {limits.max:g} for "
            f"GGUF but are from {scales.min():.2g} to {scales.max():.2g}"
        )
    return float((np.abs(scales.astype(np.float16) - scales) / scales).max())


def _generation(model: PackedModel) -> GenerationConfig:
    file = model.path / GENERATION
    return GenerationConfig.of(read_generation_config(file), file, model.config.vocab_size)


def _text(model: PackedModel, generation: GenerationConfig) -> dict[str, Any]:
    """Return the metadata of tokenizer and chat template."""
    file, template = model.path / TOKENIZER, model.path / CHAT_TEMPLATE
    if not file.exists():
        return _NO_TOKENIZER
    fields = read_json(file)
    with boundary(file, "is not a tokenizer.json"):
        metadata = tokenizer_metadata(fields, generation, model.config.vocab_size, file)
    if template.exists():
        metadata["tokenizer.chat_template"] = read_text(template)
    return metadata


def _omissions(model: PackedModel, generation: GenerationConfig) -> Iterator[str]:
    """Yield a line for each part of the model that the file lacks."""
    file = model.path / TOKENIZER
    if not file.exists():
        yield "the file has no tokenizer, as the model has none"
    else:
        yield from differences(read_json(file), file)
    if generation.stops:
        yield "stop strings are left out: GGUF has no key for them"
    if len(generation.end_tokens) > MAX_END_TOKENS:
        yield f"only the first {MAX_END_TOKENS} EOS tokens are kept: GGUF has no key for more"
