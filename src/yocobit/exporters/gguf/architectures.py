"""The architecture of llama.cpp that computes a model, and its metadata.

The rules are those of llama.cpp's sources: src/models/{llama,qwen3,bitnet}.cpp.
"""

from __future__ import annotations

from typing import Any

from yocobit.config import ModelConfig
from yocobit.exporters.rules import PLAIN, check, equals
from yocobit.importers.gguf.architectures import ARCHITECTURES, FFN, Architecture
from yocobit.importers.gguf.reader import ACTIVATIONS, INT8_PER_TOKEN
from yocobit.packing.formats import is_quantised
from yocobit.packing.reader import PackedModel

# llama.cpp applies SiLU in all of them, also in "bitnet".
_ALL = (*PLAIN, equals("ffn", "swiglu"), equals("projection_norms", False))
_RULES = {
    "llama": (),  # reads biases of Q, K and V, and divisors of the frequencies
    "qwen3": (equals("qk_norm", "before_rope"), equals("full_rope_frequencies", ())),
    "bitnet": (
        equals("tie_embeddings", True),
        equals("head_size", None),
        equals("qkv_bias", False),
        equals("qk_norm", "none"),
        equals("full_rope_frequencies", ()),
    ),
}


def architecture_for(model: PackedModel) -> Architecture:
    """Return the architecture that computes a model; ConfigError if none does."""
    config = model.config
    name = "bitnet" if config.sub_norm else "llama" if config.qk_norm == "none" else "qwen3"
    check(model, f"llama.cpp's architecture '{name}'", (*_ALL, *_RULES[name]))
    return ARCHITECTURES[name]


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
    metadata = {f"{architecture.name}.{key}": value for key, value in keys.items()}
    if is_quantised(config.weights):
        metadata[ACTIVATIONS] = INT8_PER_TOKEN
    if architecture.ffn is None:
        metadata[FFN] = config.ffn
    return metadata
