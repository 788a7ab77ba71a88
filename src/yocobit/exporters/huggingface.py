"""Export of a packed model to a directory that transformers loads, one tensor at a time.

Trits are packed as in transformers' quant_method "bitnet", with the scales as they are. All other
weights are stored in float32, or in float16 if the model has them so: nothing is rounded.

Letters: M output features   K input features
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from yocobit import disk
from yocobit.config import ConfigError, FeedForwardKind, ModelConfig
from yocobit.exporters.rules import (
    PLAIN,
    Rule,
    check,
    context_length,
    equals,
    frequency_divisors,
    with_rope_in_halves,
)
from yocobit.exporters.weights import Weights
from yocobit.importers.huggingface.names import HEAD, Names
from yocobit.packing.file_format import (
    CHAT_TEMPLATE,
    CONFIG,
    GENERATION,
    MODEL,
    TOKENIZER,
    TensorSpec,
    scale_name,
)
from yocobit.packing.formats import F16, INT8_PER_TOKEN, is_quantized
from yocobit.packing.layout import Array, Codes, Int8s
from yocobit.packing.reader import PackedModel
from yocobit.packing.stored_parameters import StoredParameter
from yocobit.packing.text_files import TOKENIZER_CONFIG
from yocobit.packing.writer import new_directory, write_safetensors
from yocobit.reading import read_text
from yocobit.text import (
    AddedTokens,
    GenerationConfig,
    added_tokens,
    parse_tokenizer,
    read_generation_config,
)

_NAMES = Names.of((), {}, uses_rms_norm=True)
_ROWS_PER_BYTE = 4
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

_ACTIVATIONS: dict[FeedForwardKind, str] = {
    "swiglu": "silu",
    "relu2": "relu2",
    "geglu": "gelu_pytorch_tanh",
}
_CLASSES = {"bitnet": "BitNet", "llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
_ALL = (
    *PLAIN,
    equals("ffn", *_ACTIVATIONS),
    equals("weights", "ternary", "sign", "dense"),  # one scale per matrix
    Rule("n_heads", lambda config: config.d_model % config.n_heads == 0, "must divide d_model"),
)
_RULES: dict[str, tuple[Rule, ...]] = {
    # Published checkpoints of it have ternary weights, also those without a quantization_config.
    "bitnet": (equals("weights", "ternary", "sign"), equals("qk_norm", "none")),
    "llama": (),
    "qwen2": (),
    "qwen3": (equals("qk_norm", "before_rope"), equals("qkv_bias", False)),
}
# AutoBitLinear multiplies a bias by the scale, and only it has a norm before the projection.
_QUANTISED = (equals("qkv_bias", False),)
_DENSE = (equals("projection_norms", False),)


def export_huggingface(model: PackedModel, out: Path, context: int | None = None) -> list[str]:
    """Write a model as the directory `out`; return the differences from the model, one line each.

    `context` is the context length that config.json names, by default the trained one or 4096.
    ConfigError for what transformers cannot compute.
    """
    config_json = _config(model, context_length(model.config, context))
    specs = dict(_specs(model))
    with new_directory(out) as directory:
        disk.write_json(directory / CONFIG, config_json)
        _write_text(model, directory)
        write_safetensors(directory / MODEL, specs, _tensors(model), {"format": "pt"})
    return []


def _model_type(model: PackedModel, config: ModelConfig) -> str:
    """Return the family of transformers that computes a model; ConfigError if none does."""
    if config.sub_norm:
        kind = "bitnet"
    elif config.qk_norm != "none":
        kind = "qwen3"
    else:
        kind = "qwen2" if config.qkv_bias else "llama"
    extra = _QUANTISED if is_quantized(config.weights) else _DENSE
    target = f"transformers' model type '{kind}'"
    check(config, model.path, target, (*_ALL, *_RULES[kind], *extra))
    if model.head_format.block_columns > 1 and model.head_format.activations is INT8_PER_TOKEN:
        raise ConfigError(
            f"{model.path}: the head must be in floats, int8 or int4 for transformers but is "
            f"{model.head_format.name}"
        )
    return kind


def _config(model: PackedModel, context: int) -> dict[str, Any]:
    """Return the content of config.json."""
    config = with_rope_in_halves(model.config, model.path)
    kind = _model_type(model, config)
    fields: dict[str, Any] = {
        "model_type": kind,
        "architectures": [f"{_CLASSES[kind]}ForCausalLM"],
        "dtype": "float32",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": _ACTIVATIONS[config.ffn],
        "max_position_embeddings": context,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": _rope(config, context),
        "tie_word_embeddings": _is_tied(model),
    }
    generation = _generation(model)
    fields |= {key: generation.get(key) for key in _TOKEN_IDS}
    if is_quantized(config.weights):
        fields["quantization_config"] = _quantization(model)
    return fields


def _rope(config: ModelConfig, context: int) -> dict[str, Any]:
    """Return rope_parameters; "longrope" has a divisor of each frequency."""
    if not config.full_rope_frequencies and config.rope_factor == 1:
        return {"rope_type": "default", "rope_theta": config.rope_theta}
    divisors = frequency_divisors(config).tolist()
    return {
        "rope_type": "longrope",
        "rope_theta": config.rope_theta,
        "factor": 1.0,
        "attention_factor": config.rope_factor,
        "original_max_position_embeddings": context,
        "short_factor": divisors,
        "long_factor": divisors,
    }


def _quantization(model: PackedModel) -> dict[str, Any]:
    dense = [
        _NAMES.of_parameter(name).removesuffix(".weight")
        for name, stored in model.parameters.items()
        if stored.role == "projection" and not stored.format.is_integer
    ]
    fields: dict[str, Any] = {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "offline",
        "modules_to_not_convert": [HEAD, *dense],
    }
    if model.config.projection_norms:
        fields |= {"use_rms_norm": True, "rms_norm_eps": model.config.projection_norm_eps}
    return fields


def _is_tied(model: PackedModel) -> bool:
    return "head.weight" not in model.parameters


def _specs(model: PackedModel) -> Iterator[tuple[str, TensorSpec]]:
    """Yield names, dtypes and shapes of the tensors."""
    for name, stored in model.parameters.items():
        theirs = _NAMES.of_parameter(name)
        if _is_packed(stored):
            M, K = stored.shape
            yield theirs, TensorSpec("U8", (M // _ROWS_PER_BYTE, K))
            yield scale_name(theirs), TensorSpec("F32", (1,))
        else:
            yield theirs, TensorSpec("F16" if stored.format is F16 else "F32", stored.shape)


def _tensors(model: PackedModel) -> Iterator[tuple[str, Array]]:
    """Yield the tensors of _specs."""
    weights = Weights(model, in_halves=True)
    for name, stored in model.parameters.items():
        theirs = _NAMES.of_parameter(name)
        if _is_packed(stored):
            integers, scales = weights.matrix(name)
            yield theirs, _packed(integers)
            yield scale_name(theirs), scales
        elif stored.format is F16:
            yield theirs, weights.float16s(name)
        else:
            yield theirs, weights.floats_of(name)


def _is_packed(stored: StoredParameter) -> bool:
    return stored.role == "projection" and stored.format.is_integer


def _packed(trits: Int8s) -> Codes:
    """Return uint8 (M / 4, K): a byte has rows i, i + M/4, i + M/2, i + 3M/4, from its low bits."""
    codes = (trits + np.int8(1)).view(np.uint8).reshape(_ROWS_PER_BYTE, -1, trits.shape[1])
    packed: Codes = codes[0] | codes[1] << np.uint8(2) | codes[2] << np.uint8(4)
    packed |= codes[3] << np.uint8(6)
    return packed


def _write_text(model: PackedModel, directory: Path) -> None:
    """Write tokenizer, chat template and generation defaults; name the special tokens."""
    generation = _generation(model)
    disk.write_json(directory / GENERATION, generation)
    names: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    file = model.path / TOKENIZER
    if not file.exists():
        return
    tokenizer = parse_tokenizer(read_text(file), file)
    for key in _TOKEN_IDS:
        ids = generation.get(key)
        first = ids[0] if isinstance(ids, list) and ids else ids
        if isinstance(first, int) and (token := tokenizer.id_to_token(first)) is not None:
            names[key.removesuffix("_id")] = token
    disk.write_json(directory / TOKENIZER_CONFIG, names)
    for each in (TOKENIZER, CHAT_TEMPLATE):
        if (model.path / each).exists():
            shutil.copyfile(model.path / each, directory / each)
    added, bos = added_tokens(tokenizer, file), generation.get("bos_token_id")
    if added.before != (before := () if bos is None else (bos,)):
        _set_added(tokenizer, added._replace(before=before), file)
        tokenizer.save(str(directory / TOKENIZER))


def _generation(model: PackedModel) -> dict[str, Any]:
    """Return the generation defaults, without a padding token that the vocabulary lacks."""
    source, vocab_size = model.path / GENERATION, model.config.vocab_size
    fields = read_generation_config(source)
    GenerationConfig.of(fields, source, vocab_size)
    pad = fields.get("pad_token_id")  # often -1 in published models
    if type(pad) is not int or not 0 <= pad < vocab_size:
        fields.pop("pad_token_id", None)
    return fields


def _set_added(tokenizer: Tokenizer, added: AddedTokens, file: Path) -> None:
    """Set the post-processor of a tokenizer: it adds the same tokens to a text as the engine."""
    for token in (*added.before, *added.after):
        if tokenizer.id_to_token(token) is None:
            raise ConfigError(
                f"{file}: must have a token of id {token}, which is added to each text, but has "
                f"none; correct bos_token_id in {GENERATION}, or the post_processor"
            )
    parts = {name: ids for name, ids in added._asdict().items() if ids}
    text = [part for part in ("before", "$A", "after") if part in parts or part == "$A"]
    tokenizer.post_processor = TemplateProcessing(
        single=text,
        pair=[*text, *("$B" if part == "$A" else part for part in text)],
        special_tokens=[
            {"id": name, "ids": list(ids), "tokens": [tokenizer.id_to_token(i) for i in ids]}
            for name, ids in parts.items()
        ],
    )
