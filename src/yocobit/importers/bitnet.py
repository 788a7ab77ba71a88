"""Importing published BitNet b1.58 checkpoints: Hugging Face directories of model_type "bitnet".

Weights are ternary codes, four rows to a uint8 with a scale per matrix, or bfloat16 masters that
are quantised as the model was trained to be (arXiv:2402.17764, arXiv:2504.12285). Needs torch.

Letters: M output features   K input features   V vocabulary   C model width
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yocobit.config import ConfigError, ModelConfig
from yocobit.mixers import parameter_shapes
from yocobit.packing.layout import pack_int4, pack_ternary, quantize_rows
from yocobit.packing.reader import (
    CHAT_TEMPLATE,
    CONFIG,
    GENERATION,
    MODEL,
    TOKENIZER,
    PackedModel,
    is_projection,
    is_table,
)
from yocobit.packing.writer import Array, check_new, write_model

if TYPE_CHECKING:
    from torch import Tensor

_TOKENIZER_CONFIG = "tokenizer_config.json"
_ACTIVATIONS = {"relu2": "relu2", "silu": "swiglu"}
_NAMES = {
    "mixer_norm": "input_layernorm",
    "mixer.q_proj": "self_attn.q_proj",
    "mixer.k_proj": "self_attn.k_proj",
    "mixer.v_proj": "self_attn.v_proj",
    "mixer.out_proj": "self_attn.o_proj",
    "mixer.sub_norm": "self_attn.attn_sub_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn.gate_proj": "mlp.gate_proj",
    "ffn.up_proj": "mlp.up_proj",
    "ffn.down_proj": "mlp.down_proj",
    "ffn.sub_norm": "mlp.ffn_sub_norm",
}
_GENERATION_KEYS = (
    "bos_token_id",
    "eos_token_id",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "max_new_tokens",
)


def import_bitnet(source: Path, out: Path, head: str = "int8") -> PackedModel:
    """Write the Hugging Face checkpoint in `source` as a packed model into the new directory `out`.

    `head` is "int8" or "int4", which halves what a token reads of it and costs some exactness.
    ConfigError names what is missing or what the engine cannot run.
    """
    check_new(out)
    fields = _read_json(source / CONFIG)
    config = _config(fields, source / CONFIG)
    checkpoint = _Checkpoint(source, fields)
    tensors: dict[str, Array] = {}
    for name, shape in parameter_shapes(config).items():
        tensors.update(_convert(checkpoint, name, shape))
    if head == "int4":
        name = "embedding.weight" if config.tie_embeddings else "head.weight"
        values = checkpoint.floats(_their_name(name), (config.vocab_size, config.d_model))
        tensors["head.weight"], tensors["head.weight_scale"] = pack_int4(values)
    tokenizer, generation = source / TOKENIZER, _generation(source, fields)
    return write_model(
        out,
        config,
        tensors,
        tokenizer.read_bytes() if tokenizer.is_file() else None,
        generation,
        _chat_template(source, begins="bos_token_id" in generation),
    )


class _Checkpoint:
    """The tensors of one or several safetensors files, read one at a time."""

    def __init__(self, source: Path, fields: dict[str, Any]) -> None:
        from safetensors import SafetensorError, safe_open

        self.source = source
        quantization = fields.get("quantization_config") or {}
        # Their first linear class divides by the stored scale, the later one multiplies.
        self.is_inverse = quantization.get("linear_class", "bitlinear") == "bitlinear"
        index = source / f"{MODEL}.index.json"
        files = sorted(set(_read_json(index)["weight_map"].values())) if index.exists() else [MODEL]
        self.files: dict[str, Any] = {}
        for file in files:
            try:
                opened: Any = safe_open(source / file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise ConfigError(f"{source / file}: cannot be read ({error})") from None
            self.files.update(dict.fromkeys(opened.keys(), opened))

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def read(self, name: str) -> Tensor:
        if name not in self.files:
            raise ConfigError(f"{self.source}: tensor '{name}' is missing")
        tensor: Tensor = self.files[name].get_tensor(name)
        return tensor

    def floats(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        tensor = self.read(name)
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            raise ConfigError(
                f"{self.source}: tensor '{name}' must be floats of shape {list(shape)} but is "
                f"{str(tensor.dtype).removeprefix('torch.')} of {list(tensor.shape)}"
            )
        values: NDArray[np.float32] = tensor.float().numpy()
        if not np.isfinite(values).all():
            raise ConfigError(f"{self.source}: tensor '{name}' must be finite but is not")
        return values


def _convert(
    checkpoint: _Checkpoint, name: str, shape: tuple[int, ...]
) -> Iterator[tuple[str, Array]]:
    """Give the packed tensors of one parameter of ours."""
    theirs = _their_name(name)
    if is_projection(name):
        codes, scale = _ternary(checkpoint, theirs, shape)
        yield name, pack_ternary(codes)
        yield f"{name}_scale", np.array([scale], dtype=np.float32)
    elif is_table(name):
        codes, scales = quantize_rows(checkpoint.floats(theirs, shape))
        yield name, codes
        yield f"{name}_scale", scales
    else:
        yield name, checkpoint.floats(theirs, shape)


def _ternary(
    checkpoint: _Checkpoint, name: str, shape: tuple[int, ...]
) -> tuple[NDArray[np.int8], float]:
    """Return weights (M, K) in {-1, 0, +1} and their scale."""
    from yocobit.model.quantization import quantize_weight

    M, K = shape
    weight = checkpoint.read(name)
    if weight.is_floating_point():
        import torch

        values = torch.from_numpy(checkpoint.floats(name, shape))
        if f"{name}_scale" in checkpoint:  # already -1, 0 and +1, in floating point
            return values.numpy().astype(np.int8), _scale(checkpoint, name)
        integers, scale = quantize_weight(values, "ternary")
        return integers.numpy().astype(np.int8), float(scale)
    packed = weight.numpy()
    if packed.dtype != np.uint8 or packed.shape != (-(-M // 4), K):
        raise ConfigError(
            f"{checkpoint.source}: tensor '{name}' must be uint8 of shape {[-(-M // 4), K]} but is "
            f"{packed.dtype} of {list(packed.shape)}"
        )
    # A byte holds rows i, i + M/4, i + M/2 and i + 3M/4, from its lowest bits up.
    rows = np.concatenate([packed >> shift & 3 for shift in (0, 2, 4, 6)])[:M]
    if rows.max() > 2:
        raise ConfigError(f"{checkpoint.source}: tensor '{name}' must hold codes 0 to 2 but has 3")
    return rows.astype(np.int8) - np.int8(1), _scale(checkpoint, name)


def _scale(checkpoint: _Checkpoint, name: str) -> float:
    value = float(checkpoint.floats(f"{name}_scale", (1,))[0])
    if value <= 0:
        raise ConfigError(
            f"{checkpoint.source}: tensor '{name}_scale' must be above 0 but is {value}"
        )
    return 1 / value if checkpoint.is_inverse else value


def _their_name(name: str) -> str:
    if name in ("embedding.weight", "head.weight", "norm.weight"):
        theirs = {"embedding": "model.embed_tokens", "head": "lm_head", "norm": "model.norm"}
        return theirs[name.split(".")[0]] + ".weight"
    _, layer, part = name.removesuffix(".weight").split(".", 2)
    return f"model.layers.{layer}.{_NAMES[part]}.weight"


def _config(fields: dict[str, Any], file: Path) -> ModelConfig:
    """Translate a Hugging Face config; ConfigError for what the engine has no counterpart of."""

    def field(name: str) -> Any:
        if name not in fields:
            raise ConfigError(f"{file}: key '{name}' is missing")
        return fields[name]

    if fields.get("model_type") != "bitnet":
        raise ConfigError(
            f"{file}: model_type must be 'bitnet' but is {fields.get('model_type')!r}"
        )
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = rope.get("rope_theta", fields.get("rope_theta", 500000.0))
    if kind != "default":
        raise ConfigError(f"{file}: rope_type must be 'default' but is {kind!r}")
    if fields.get("attention_bias"):
        raise ConfigError(f"{file}: attention_bias must be false but is true")
    activation = fields.get("hidden_act", "relu2")
    if activation not in _ACTIVATIONS:
        known = " or ".join(_ACTIVATIONS)
        raise ConfigError(f"{file}: hidden_act must be {known} but is {activation!r}")
    n_heads, d_model = field("num_attention_heads"), field("hidden_size")
    if (fields.get("head_dim") or d_model // n_heads) != d_model // n_heads:
        raise ConfigError(
            f"{file}: head_dim must be hidden_size / num_attention_heads = {d_model // n_heads} "
            f"but is {fields['head_dim']}"
        )
    values = {
        "vocab_size": field("vocab_size"),
        "d_model": d_model,
        "layers": ["full"] * field("num_hidden_layers"),
        "d_ff": field("intermediate_size"),
        "n_heads": n_heads,
        "n_kv_heads": fields.get("num_key_value_heads") or n_heads,
        "n_self_heads": n_heads,
        "n_self_kv_heads": n_heads,
        "ffn": _ACTIVATIONS[activation],
        "full_rope": "half",
        "rope_theta": theta,
        "norm_eps": fields.get("rms_norm_eps", 1e-5),
        "tie_embeddings": fields.get("tie_word_embeddings", False),
        "scale_embedding": False,
    }
    return ModelConfig.from_dict(values, str(file))


def _generation(source: Path, fields: dict[str, Any]) -> dict[str, Any]:
    file = source / GENERATION
    known = {**fields, **(_read_json(file) if file.exists() else {})}
    return {key: known[key] for key in _GENERATION_KEYS if known.get(key) is not None}


def _chat_template(source: Path, begins: bool) -> bytes | None:
    """Return the template of conversations, if there is one, and in it what it calls its tokens.

    `begins` says that the engine itself begins every text with bos_token.
    """
    file, theirs = source / CHAT_TEMPLATE, source / _TOKENIZER_CONFIG
    fields = _read_json(theirs) if theirs.is_file() else {}
    template = file.read_bytes() if file.is_file() else fields.get("chat_template")
    if isinstance(template, str):
        template = template.encode()
    if not isinstance(template, bytes):
        return None
    tokens = {name: fields.get(name) for name in ("bos_token", "eos_token")}
    texts = {name: t.get("content") if isinstance(t, dict) else t for name, t in tokens.items()}
    if begins:
        texts["bos_token"] = ""
    names = [f"{{% set {name} = {json.dumps(text or '')} %}}" for name, text in texts.items()]
    return "".join(names).encode() + template


def _read_json(file: Path) -> dict[str, Any]:
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file") from None
    except ValueError as error:
        raise ConfigError(f"{file}: is not valid JSON ({error})") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"{file}: must hold an object but holds {type(fields).__name__}")
    return fields
