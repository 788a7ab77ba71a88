"""The mapping of the metadata of a GGUF file to ModelConfig.

The shape is in the metadata. Biases, q/k norms, projection norms and an untied head follow from the
tensors in the file. A key that is not mapped is rejected with an error that names it.

Letters: n rotated values of a head
"""

from __future__ import annotations

from typing import Any

import numpy as np

from yocobit.config import FeedForwardKind, Mixer, ModelConfig
from yocobit.errors import shown
from yocobit.importers.gguf.architectures import FFN, ROPE_FACTORS, Architecture
from yocobit.importers.gguf.container import GGUFFile
from yocobit.importers.gguf.metadata import Metadata
from yocobit.importers.gguf.tensor_types import identify, read_floats
from yocobit.importers.huggingface.rope import rope_of

_MAX_WIDTH, _MAX_LAYERS = 1 << 16, 1024  # as ModelConfig
_POOLING = {0: "mean", 1: "mean", 3: "last"}  # 0: none
_WINDOW_THETA = 10000.0
_NO_LIMIT = 1e-6  # llama.cpp does not apply a swiglu_clamp_exp up to this

# Keys of which only this value is supported, and keys that do not change what a model computes.
_REQUIRED = {
    "attention.causal": True,
    "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attention.clamp_kqv": 0.0,
}
_IGNORED = (
    "block_count",
    "vocab_size",  # the number of rows of the embedding
    "attention.layer_norm_epsilon",
    "rope.scaling.finetuned",
    "tensor_data_layout",
)
# The same for experts: their router has a softmax over all experts, renormalised over the top k.
_EXPERTS_REQUIRED = {
    "expert_shared_count": 0,
    "expert_weights_scale": 1.0,
    "expert_weights_norm": True,
    "expert_gating_func": 1,
}


def read_config(file: GGUFFile, architecture: Architecture) -> tuple[ModelConfig, list[str]]:
    """Return the configuration of a file as if all weights were floats, and warnings."""
    keys = Metadata(file, architecture.name)
    warnings: list[str] = []
    vocab_size = _rows(file, "token_embd.weight")
    n_layers = keys.count("block_count", least=1, most=_MAX_LAYERS)
    d_model = keys.count("embedding_length", least=1, most=_MAX_WIDTH)
    n_heads = keys.count("attention.head_count", least=1, most=_MAX_WIDTH)
    n_kv_heads = keys.count("attention.head_count_kv", n_heads, most=_MAX_WIDTH)
    default_size = d_model // n_heads
    head_size = keys.count("attention.key_length", default_size, most=_MAX_WIDTH)
    keys.require("attention.value_length", head_size)
    for key, value in _REQUIRED.items():
        keys.require(key, value)
    layers, window = _layers(keys, architecture, n_layers)
    if architecture.window_pattern > 1 and window is None:
        warnings.append(
            "the file names no attention.sliding_window: every layer attends to all positions"
        )
    rope = _rope(file, keys, architecture, head_size)
    values: dict[str, Any] = {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "layers": layers,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "n_self_heads": n_heads,
        "n_self_kv_heads": n_kv_heads,
        "ffn": architecture.ffn or _activation(file, warnings),
        "weights": "dense",
        "sub_norm": architecture.sub_norm,
        "norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "tie_embeddings": "output.weight" not in file.tensors,
        "scale_embedding": architecture.scale_embedding,
        "qkv_bias": "blk.0.attn_q.bias" in file.tensors,
        "projection_norms": "blk.0.attn_q_norm_in.weight" in file.tensors,
        "post_norms": "blk.0.post_attention_norm.weight" in file.tensors,
        "pooling": _pooling(keys),
        "trained_context": _context(keys),
    }
    values |= rope | _feed_forward(keys, architecture) | _scalars(keys, architecture, warnings)
    if "blk.0.attn_q_norm.weight" in file.tensors:
        values["qk_norm"] = architecture.qk_norm
    if head_size != default_size or d_model % n_heads:
        values["head_size"] = head_size
    if window is not None:
        values["window"] = window
    if architecture.has_rope_pattern and keys.is_array("attention.rope_pattern"):
        pattern = keys.flags("attention.rope_pattern", n_layers)
        values["nope_layers"] = [i for i, has_rope in enumerate(pattern) if not has_rope]
    if "attention.scale" in keys:
        values["attention_scale"] = keys.number("attention.scale")
    elif architecture.name == "gemma3" and n_layers == 62:
        # Gemma 3 27B divides by the width per head instead of the head size, without a key for it.
        values["attention_scale"] = (d_model / n_heads) ** -0.5
    keys.refuse_others(_IGNORED)
    return ModelConfig.from_dict(values, str(file.path)), warnings


def _rows(file: GGUFFile, name: str) -> int:
    if name not in file.tensors:
        raise file.error(f"tensor '{name}' is missing; the file holds no weights")
    return file.tensors[name].shape[0]


def _activation(file: GGUFFile, warnings: list[str]) -> FeedForwardKind:
    """Return the activation of the architecture "bitnet", for which the format has no key.

    Its two families differ in the tokenizer. 1bitLLM's models have SiLU and SentencePiece
    ("llama"); Microsoft's 2B4T has squared ReLU and the BPE of Llama 3 ("gpt2").
    """
    own = file.metadata.get(FFN)
    if own == "swiglu":
        return "swiglu"
    if own is not None:
        raise file.error(f"{FFN} must be 'swiglu' but is {shown(own)}")
    model = file.metadata.get("tokenizer.ggml.model")
    if model == "llama":
        ffn: FeedForwardKind = "swiglu"
    elif model == "gpt2":
        ffn = "relu2"
    else:
        raise file.error(
            "tokenizer.ggml.model must be 'llama' (1bitLLM, SiLU) or 'gpt2' (2B4T, squared ReLU) "
            f"for the architecture 'bitnet', which names no activation, but is {shown(model)}"
        )
    warnings.append(
        f"the architecture 'bitnet' names no activation; took {ffn}, as in the family with the "
        f"tokenizer model '{model}'"
    )
    return ffn


def _feed_forward(keys: Metadata, architecture: Architecture) -> dict[str, Any]:
    """Return the width of the FFN, and the fields of experts."""
    if not architecture.has_experts:
        keys.require("expert_count", 0)
        keys.require("expert_used_count", 0)
        return {"d_ff": keys.count("feed_forward_length", most=1 << 17)}
    for key, value in _EXPERTS_REQUIRED.items():
        keys.require(key, value)
    keys.count("feed_forward_length", 0)  # of layers without experts, of which there are none
    limit = keys.number("swiglu_clamp_exp", 0.0) if architecture.has_swiglu_limit else 0.0
    return {
        "d_ff": keys.count("expert_feed_forward_length", least=1, most=1 << 17),
        "n_experts": keys.count("expert_count", least=1, most=1 << 10),
        "n_active_experts": keys.count("expert_used_count", least=1, most=1 << 10),
        "swiglu_limit": limit if limit > _NO_LIMIT else None,
    }


def _scalars(keys: Metadata, architecture: Architecture, warnings: list[str]) -> dict[str, float]:
    """Return the factors of embeddings, residuals and logits that the file or its family has."""
    defaults: dict[str, float] = {}
    if architecture.name == "minicpm":
        n_layers, width = keys.count("block_count"), keys.count("embedding_length")
        defaults = {
            "embedding_scale": 12.0,
            "residual_scale": 1.4 / n_layers**0.5,
            "logit_scale": width / 256,
        }
        if missing := [key for key in defaults if key not in keys]:
            warnings.append(
                f"the file names no {' or '.join(missing)}; took those of the first MiniCPM models"
            )
    scalars = {
        key: keys.number(key, defaults.get(key, 1.0))
        for key in ("embedding_scale", "residual_scale", "logit_scale")
        if key in keys or key in defaults
    }
    if architecture.divides_logits and "logit_scale" in scalars:
        if scalars["logit_scale"] <= 0:
            raise keys.error("logit_scale", "must be above 0", scalars["logit_scale"])
        scalars["logit_scale"] = 1 / scalars["logit_scale"]
    return scalars


def _pooling(keys: Metadata) -> str:
    value = keys.count("pooling_type", 0)
    if value not in _POOLING:
        raise keys.error("pooling_type", "must be 0 (none), 1 (mean) or 3 (last)", value)
    return _POOLING[value]


def _context(keys: Metadata) -> int | None:
    """Return the positions that the model was trained for; None without the key."""
    return keys.count("context_length", 0) or None


def _layers(
    keys: Metadata, architecture: Architecture, n_layers: int
) -> tuple[list[Mixer], int | None]:
    """Return the mixer of each layer, and the window of sliding-window attention."""
    if architecture.rope_in_windows_only:
        window = keys.count("attention.sliding_window", least=1)
    else:
        window = keys.count("attention.sliding_window", 0)
    pattern_key = "attention.sliding_window_pattern"
    if keys.is_array(pattern_key):
        has_window = keys.flags(pattern_key, n_layers)
    else:
        # Layers n - 1, 2 n - 1, ... attend to all positions.
        n = keys.count(pattern_key, architecture.window_pattern)
        has_window = [n <= 1 or i % n < n - 1 for i in range(n_layers)]
    if window == 0:
        return ["full"] * n_layers, None
    return ["window" if each else "full" for each in has_window], window


def _rope(
    file: GGUFFile, keys: Metadata, architecture: Architecture, head_size: int
) -> dict[str, Any]:
    """Return the RoPE fields of ModelConfig.

    They rotate halves: the reader undoes the row order that suits interleaved RoPE.
    """
    n = keys.count("rope.dimension_count", head_size, most=_MAX_WIDTH)
    is_whole = n == head_size
    if n > head_size or n < 2 or n % 2 or (architecture.permutes and not is_whole):
        raise keys.error("rope.dimension_count", f"must be the head size {head_size}", n)
    subject = f"{file.path}: {architecture.name}.rope"
    context = _context(keys)
    attention_factor = keys.number("rope.scaling.attn_factor", 1.0)

    def fields(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
        rope = rope_of(parameters, n, context, subject)
        frequencies = rope.frequencies
        if not (is_whole or frequencies):
            frequencies = tuple(rope.theta ** (-2 * i / n) for i in range(n // 2))
        return {
            f"{name}_rope": "half",
            f"{name}_rope_frequencies": frequencies,
            "rope_theta": rope.theta,
            "rope_factor": rope.factor * attention_factor,
        }

    parameters = _rope_parameters(file, keys, architecture, n)
    if architecture.rope_in_windows_only:
        keys.require("rope.dimension_count_swa", n)
        parameters["rope_theta"] = keys.number("rope.freq_base_swa", parameters["rope_theta"])
        return fields("window", parameters) | {"full_rope": "none"}
    full = fields("full", parameters)
    if architecture.window_pattern == 1:
        return full | fields("window", parameters)
    # Windows have a base of their own, which is not scaled.
    base = keys.number("rope.freq_base_swa", _WINDOW_THETA)
    window = fields("window", {"rope_theta": base})
    if base != full["rope_theta"] and not window["window_rope_frequencies"]:
        frequencies = tuple(base ** (-2 * i / n) for i in range(n // 2))
        window["window_rope_frequencies"] = frequencies
    return window | full


def _rope_parameters(
    file: GGUFFile, keys: Metadata, architecture: Architecture, n: int
) -> dict[str, Any]:
    """Return the base and the scaling rule as `rope_parameters` of transformers."""
    theta = keys.number("rope.freq_base", 10000.0)
    alpha = keys.number("rope.scaling.alpha", 0.0) if architecture.scales_theta else 0.0
    if alpha > 0 and n > 2:
        theta *= min(alpha, 1e12) ** (n / (n - 2))
    kind = keys.text("rope.scaling.type", "linear")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0)) or 1.0
    original = keys.count("rope.scaling.original_context_length", 0) or None
    optional = {
        "attention_factor": "rope.scaling.yarn_attn_factor",
        "beta_fast": "rope.scaling.yarn_beta_fast",
        "beta_slow": "rope.scaling.yarn_beta_slow",
    }
    yarn = {ours: keys.number(key) for ours, key in optional.items() if key in keys}
    if not architecture.scales_theta:
        keys.require("rope.scaling.alpha", 0.0)
    keys.require("rope.scaling.yarn_log_multiplier", 0.0)
    keys.require("rope.scaling.yarn_ext_factor", 1.0)
    if kind not in ("none", "linear", "yarn", "longrope"):
        rule = "must be none, linear, yarn or longrope"
        raise keys.error("rope.scaling.type", rule, kind)
    divisors = {name: _divisors(file, name, n) for name in ROPE_FACTORS if name in file.tensors}
    if divisors and (kind == "yarn" or (kind == "linear" and factor != 1)):
        raise keys.error("rope.scaling.type", f"must be left out with {min(divisors)}", kind)
    parameters: dict[str, Any] = {"rope_theta": theta}
    if ROPE_FACTORS[0] in divisors:  # Llama 3: divisors that do not depend on the context
        every = divisors[ROPE_FACTORS[0]]
        longrope = {"short_factor": every, "long_factor": every, "attention_factor": 1.0}
        return parameters | {"rope_type": "longrope"} | longrope
    if kind == "longrope":
        return parameters | {
            "rope_type": kind,
            "original_max_position_embeddings": original,
            "long_factor": divisors.get(ROPE_FACTORS[1]),
            "short_factor": divisors.get(ROPE_FACTORS[2]),
            "attention_factor": 1.0,  # rope.scaling.attn_factor has it
        }
    if kind == "yarn":
        scaling = {"factor": factor, "original_max_position_embeddings": original}
        return parameters | {"rope_type": kind} | scaling | yarn
    return parameters | ({"rope_type": kind, "factor": factor} if factor != 1 else {})


def _divisors(file: GGUFFile, name: str, n: int) -> list[float]:
    """Return the divisors of the frequencies that a tensor holds."""
    tensor = file.tensors[name]
    divisors = read_floats(file, tensor, identify(file, tensor)).reshape(-1)
    if len(divisors) != n // 2 or not (np.isfinite(divisors) & (divisors > 0)).all():
        raise file.error(
            f"tensor '{name}' must be {n // 2} positive numbers but has shape {list(tensor.shape)}"
        )
    return [float(each) for each in divisors]
