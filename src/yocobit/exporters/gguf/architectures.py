"""The architecture of llama.cpp that computes a model, and its metadata.

The rules are those of llama.cpp's sources: src/models/{llama,qwen3,bitnet,...}.cpp.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from yocobit.config import ModelConfig
from yocobit.exporters.rules import (
    ATTENTION_SCALE,
    BLOCKS,
    LLAMA_LIKE,
    PLAIN,
    SCALARS,
    WINDOWS,
    Rule,
    check,
    equals,
)
from yocobit.importers.gguf.architectures import ARCHITECTURES, FFN, Architecture
from yocobit.importers.gguf.reader import ACTIVATIONS, INT8_PER_TOKEN
from yocobit.importers.huggingface.rope import rope_of
from yocobit.packing.formats import INT8_PER_TOKEN as INT8_ENCODING
from yocobit.packing.formats import formats_of


def _rotates_windows(config: ModelConfig) -> bool:
    """Whether windows have plain RoPE, of a part of the head or all of it."""
    own = np.array(config.window_rope_frequencies)
    plain = config.rope_theta ** (-np.arange(len(own)) / max(len(own), 1))
    is_plain = np.allclose(own, plain, rtol=1e-6)
    return config.window_rope == "half" and is_plain and not _has_nope_layer(config, "window")


def _has_nope_layer(config: ModelConfig, mixer: str) -> bool:
    """Whether nope_layers has a layer with this mixer."""
    return any(config.layers[i] == mixer for i in config.nope_layers)


def _rope_pattern(config: ModelConfig) -> list[bool]:
    """Return whether each layer has RoPE."""
    kinds = [getattr(config, f"{mixer}_rope") for mixer in config.layers]
    return [kind != "none" and i not in config.nope_layers for i, kind in enumerate(kinds)]


def _rotates_all_layers_alike(config: ModelConfig) -> bool:
    """Whether the layers with RoPE have the same one, in halves."""
    rotated = {
        m for m, rotates in zip(config.layers, _rope_pattern(config), strict=True) if rotates
    }
    kinds = {getattr(config, f"{mixer}_rope") for mixer in rotated}
    tables = {getattr(config, f"{mixer}_rope_frequencies") for mixer in rotated}
    return kinds <= {"half"} and tables <= {()}


def _rotates_no_full_layer(config: ModelConfig) -> bool:
    full = [i for i, mixer in enumerate(config.layers) if mixer == "full"]
    return config.full_rope == "none" or set(full) <= set(config.nope_layers)


def _yarn(config: ModelConfig) -> dict[str, Any] | None:
    """Return the keys of YaRN that give the frequencies of a model; None if no keys do."""
    own = config.full_rope_frequencies
    if not own:
        return {}
    # The lowest frequency is divided by the whole factor.
    factor = round(config.rope_theta ** (2 / config.head_dim - 1) / own[-1], 6)
    if not 1 <= factor <= 1e6:
        return None
    for original in (1 << exponent for exponent in range(9, 21)):
        parameters = {
            "rope_type": "yarn",
            "rope_theta": config.rope_theta,
            "factor": factor,
            "original_max_position_embeddings": original,
        }
        rope = rope_of(parameters, config.head_dim, None, "rope")
        if len(rope.frequencies) == len(own) and np.allclose(rope.frequencies, own, rtol=1e-6):
            return {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": factor,
                "rope.scaling.original_context_length": original,
                "rope.scaling.attn_factor": config.rope_factor / rope.factor,
            }
    return None


_PLAIN_FREQUENCIES = equals("full_rope_frequencies", ())
_YARN_FREQUENCIES = Rule(
    "full_rope_frequencies",
    lambda config: _yarn(config) is not None,
    "must be those of a base, or of YaRN with a context of 2^n tokens,",
)
_ALL = (equals("projection_norms", False),)
# llama.cpp applies SiLU in all of them, also in "bitnet".
_DENSE = (*_ALL, equals("ffn", "swiglu"))
_EXPERTS = (*_ALL, equals("qk_norm", "before_rope"), equals("sub_norm", False))
_RULES: dict[str, tuple[Rule, ...]] = {
    "llama": (*PLAIN, *_DENSE),  # reads biases of Q, K and V, and divisors of the frequencies
    "qwen3": (*PLAIN, *_DENSE, equals("qk_norm", "before_rope"), _YARN_FREQUENCIES),
    "qwen3moe": (*PLAIN, *_EXPERTS, _YARN_FREQUENCIES),
    "hunyuan-dense": (*PLAIN, *_DENSE, _YARN_FREQUENCIES),
    "minicpm": (*LLAMA_LIKE, *_DENSE),
    "bitnet": (
        *PLAIN,
        *_DENSE,
        equals("tie_embeddings", True),
        equals("head_size", None),
        equals("qkv_bias", False),
        equals("qk_norm", "none"),
        _PLAIN_FREQUENCIES,
    ),
    # Has scalars, a scale of attention, and layers without RoPE.
    "granite_swa": (
        *WINDOWS,
        Rule(
            "full_rope",
            _rotates_all_layers_alike,
            "and window_rope must be 'half' or 'none', with the frequencies of a base,",
        ),
        *BLOCKS,
        *_DENSE,
        equals("sub_norm", False),
        equals("qk_norm", "none"),
    ),
    "maple": (
        *WINDOWS,
        Rule("window_rope", _rotates_windows, "must be 'half' with the frequencies of a base"),
        Rule("full_rope", _rotates_no_full_layer, "must be 'none'"),
        ATTENTION_SCALE,
        *SCALARS,
        equals("post_norms", False),
        equals("head_norm", False),
        *_EXPERTS,
        equals("qkv_bias", False),
        equals("tie_embeddings", False),
    ),
}


def architecture_for(config: ModelConfig, path: Path) -> Architecture:
    """Return the architecture that computes a model; ConfigError, naming `path`, if none does."""
    name = _name(config)
    check(config, path, f"llama.cpp's architecture '{name}'", _RULES[name])
    return ARCHITECTURES[name]


def _name(config: ModelConfig) -> str:
    if config.ffn == "moe":
        return "maple" if "window" in config.layers else "qwen3moe"
    if "window" in config.layers:
        return "granite_swa"
    if config.sub_norm:
        return "bitnet"
    if config.qk_norm != "none":
        return "hunyuan-dense" if config.qk_norm == "after_rope" else "qwen3"
    scalars = config.embedding_factor, config.residual_scale, config.logit_scale
    return "llama" if scalars == (1, 1, 1) else "minicpm"


def architecture_metadata(
    config: ModelConfig, architecture: Architecture, context: int
) -> dict[str, Any]:
    """Return the metadata that describes the model."""
    keys: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": context,
        "block_count": len(config.layers),
        "embedding_length": config.d_model,
        "feed_forward_length": config.d_ff,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_theta,
    }
    if config.rope_factor != 1:
        keys["rope.scaling.attn_factor"] = config.rope_factor
    if _YARN_FREQUENCIES in _RULES[architecture.name]:
        keys |= _yarn(config) or {}
    if architecture.divides_logits:
        keys["embedding_scale"] = config.embedding_factor
        keys["residual_scale"] = config.residual_scale
        keys["logit_scale"] = 1 / config.logit_scale
    if architecture.has_experts:
        keys |= _experts(config)
    if "window" in config.layers:
        keys |= _windows(config)
    if architecture.has_rope_pattern:
        keys["attention.rope_pattern"] = np.array(_rope_pattern(config))
        if config.attention_scale is not None:
            keys["attention.scale"] = config.attention_scale
    if architecture.has_swiglu_limit:
        limits = np.full(len(config.layers), config.swiglu_limit or 0, dtype="<f4")
        keys["swiglu_clamp_exp"] = limits
    metadata = {f"{architecture.name}.{key}": value for key, value in keys.items()}
    if formats_of(config.weights)[0].activations is INT8_ENCODING:
        metadata[ACTIVATIONS] = INT8_PER_TOKEN
    if architecture.ffn is None:
        metadata[FFN] = config.ffn
    return metadata


def _experts(config: ModelConfig) -> dict[str, Any]:
    """Return the keys of experts."""
    return {
        "expert_feed_forward_length": config.d_ff,
        "expert_count": config.n_experts,
        "expert_used_count": config.n_active_experts,
    }


def _windows(config: ModelConfig) -> dict[str, Any]:
    """Return the keys of windows."""
    n_pairs = len(config.window_rope_frequencies) or config.head_dim // 2
    return {
        "attention.sliding_window": config.window,
        "attention.sliding_window_pattern": np.array([m == "window" for m in config.layers]),
        "rope.dimension_count": 2 * n_pairs,
    }
