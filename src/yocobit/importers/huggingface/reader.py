"""HuggingFaceCheckpoint: published BitNet b1.58 checkpoints, directories of model_type "bitnet".

Weights are ternary codes, four rows per uint8 with a scale per matrix, or bfloat16 master weights
(arXiv:2402.17764, arXiv:2504.12285).

Letters: M output features   K input features   V vocabulary   C model width
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from yocobit.config import ConfigError, ModelConfig
from yocobit.errors import shown
from yocobit.importers.checkpoint import IntegerMatrix
from yocobit.packing.format import CONFIG, scale_name
from yocobit.packing.formats import TERNARY, WeightFormat
from yocobit.packing.layout import Array, Floats, Int8s
from yocobit.packing.tensor_source import SafetensorsDirectory, TensorSource
from yocobit.packing.text_files import TextFiles, read_text_files
from yocobit.reading import read_json

_MAX_WIDTH, _MAX_LAYERS = 1 << 16, 1024  # as ModelConfig
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


class HuggingFaceCheckpoint:
    """A directory with config.json and safetensors files, as a Checkpoint."""

    source_type = "safetensors"
    formats: Mapping[str, WeightFormat] = {}

    def __init__(self, path: Path) -> None:
        if not (path / CONFIG).exists():
            raise ConfigError(
                f"{path}: holds no {CONFIG}; name the directory of a checkpoint that was "
                "downloaded from the Hugging Face Hub"
            )
        fields = read_json(path / CONFIG)
        self.path = path
        self.config = _config(fields, path / CONFIG)
        self.warnings: list[str] = []
        self._divides_by_scales = _divides_by_scales(fields, path / CONFIG)
        self._tensors: TensorSource = SafetensorsDirectory(path)

    def text_files(self, tokenizer: Path | None = None) -> TextFiles:
        return read_text_files(self.path, self.config.vocab_size)

    def read(self, name: str, shape: tuple[int, ...]) -> Floats | IntegerMatrix:
        theirs = _their_name(name)
        if scale_name(theirs) in self._tensors.names():
            integers, scale = self._integers(theirs, shape)
            return IntegerMatrix(integers, np.array([scale], dtype=np.float32))
        return self._floats(theirs, shape)

    def _integers(self, name: str, shape: tuple[int, ...]) -> tuple[Int8s, float]:
        """Return weights (M, K) in {-1, 0, +1} and their scale."""
        M, K = shape
        packed = self._tensors.read(name)
        if packed.dtype.kind == "f":
            values = self._checked(name, packed, shape)
            if not (is_valid := np.isin(values, TERNARY.values)).all():
                raise ConfigError(
                    f"{self.path}: tensor '{name}' must hold -1, 0 and 1, as it has a scale, but "
                    f"has {values[~is_valid][0]}"
                )
            return values.astype(np.int8), self._scale(name)
        if packed.dtype != np.uint8 or packed.shape != (-(-M // 4), K):
            raise ConfigError(
                f"{self.path}: tensor '{name}' must be uint8 of shape {[-(-M // 4), K]} but is "
                f"{packed.dtype} of {list(packed.shape)}"
            )
        # A byte holds rows i, i + M/4, i + M/2 and i + 3M/4, the first in its lowest bits.
        rows = np.concatenate([packed >> shift & 3 for shift in (0, 2, 4, 6)])[:M]
        if rows.max() > 2:
            raise ConfigError(f"{self.path}: tensor '{name}' must hold codes 0 to 2 but has 3")
        return rows.astype(np.int8) - np.int8(1), self._scale(name)

    def _scale(self, name: str) -> float:
        value = float(self._floats(scale_name(name), (1,))[0])
        if value <= 0:
            raise ConfigError(
                f"{self.path}: tensor '{scale_name(name)}' must be above 0 but is {value}"
            )
        return 1 / value if self._divides_by_scales else value

    def _floats(self, name: str, shape: tuple[int, ...]) -> Floats:
        return self._checked(name, self._tensors.read(name), shape)

    def _checked(self, name: str, values: Array, shape: tuple[int, ...]) -> Floats:
        if values.shape != shape or values.dtype.kind != "f":
            raise ConfigError(
                f"{self.path}: tensor '{name}' must be floats of shape {list(shape)} but is "
                f"{values.dtype} of {list(values.shape)}"
            )
        with np.errstate(over="ignore"):  # of float64
            floats = values.astype(np.float32, copy=False)
        if not np.isfinite(floats).all():
            raise ConfigError(f"{self.path}: tensor '{name}' must be finite but is not")
        return floats


def _divides_by_scales(fields: dict[str, Any], file: Path) -> bool:
    """Whether a weight is code / scale, as in the class "bitlinear"; later ones multiply."""
    quantization = _object(fields, "quantization_config", file)
    return bool(quantization.get("linear_class", "bitlinear") == "bitlinear")


def _their_name(name: str) -> str:
    """Return Hugging Face's name of a parameter."""
    if name in ("embedding.weight", "head.weight", "norm.weight"):
        theirs = {"embedding": "model.embed_tokens", "head": "lm_head", "norm": "model.norm"}
        return theirs[name.split(".")[0]] + ".weight"
    _, layer, part = name.removesuffix(".weight").split(".", 2)
    return f"model.layers.{layer}.{_NAMES[part]}.weight"


def _config(fields: dict[str, Any], file: Path) -> ModelConfig:
    """Convert a Hugging Face config; ConfigError for unsupported values."""

    def field(name: str) -> Any:
        if name not in fields:
            raise ConfigError(f"{file}: key '{name}' is missing")
        return fields[name]

    def count(name: str, most: int) -> int:
        value = field(name)
        if type(value) is not int or not 1 <= value <= most:
            raise ConfigError(
                f"{file}: {name} must be an integer of at least 1 and at most {most} but is "
                f"{shown(value)}"
            )
        return value

    if fields.get("model_type") != "bitnet":
        raise ConfigError(
            f"{file}: model_type must be 'bitnet' but is {shown(fields.get('model_type'))}"
        )
    rope = _object(fields, "rope_parameters", file) or _object(fields, "rope_scaling", file)
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = rope.get("rope_theta", fields.get("rope_theta", 500000.0))
    if kind != "default":
        raise ConfigError(f"{file}: rope_type must be 'default' but is {shown(kind)}")
    if bias := fields.get("attention_bias"):
        raise ConfigError(f"{file}: attention_bias must be false but is {json.dumps(bias)[:40]}")
    activation = fields.get("hidden_act", "relu2")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        known = " or ".join(_ACTIVATIONS)
        raise ConfigError(f"{file}: hidden_act must be {known} but is {shown(activation)}")
    n_heads = count("num_attention_heads", _MAX_WIDTH)
    d_model, n_layers = count("hidden_size", _MAX_WIDTH), count("num_hidden_layers", _MAX_LAYERS)
    if (fields.get("head_dim") or d_model // n_heads) != d_model // n_heads:
        raise ConfigError(
            f"{file}: head_dim must be hidden_size / num_attention_heads = {d_model // n_heads} "
            f"but is {shown(fields['head_dim'])}"
        )
    values = {
        "vocab_size": field("vocab_size"),
        "d_model": d_model,
        "layers": ["full"] * n_layers,
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


def _object(fields: dict[str, Any], name: str, file: Path) -> dict[str, Any]:
    """Return a field that is an object or absent; ConfigError if it is neither."""
    value = fields.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{file}: {name} must be an object but is {shown(value)}")
    return value
