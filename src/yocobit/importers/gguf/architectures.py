"""The closed table of model architectures in GGUF files, and the names of their tensors.

configuration.py maps the metadata of an architecture to ModelConfig.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from yocobit.config import ConfigError, FeedForwardKind, QKNorm
from yocobit.errors import shown
from yocobit.importers.gguf.container import Value

FFN = "yocobit.ffn"  # of the architecture "bitnet", written by our export


@dataclass(frozen=True)
class Architecture:
    """One `general.architecture`: the properties that have no key in the metadata."""

    name: str
    ffn: FeedForwardKind | None = "swiglu"  # None: follows from the tokenizer
    permutes: bool = False  # rows of Q and K are stored for interleaved RoPE
    scale_embedding: bool = False
    sub_norm: bool = False
    is_ternary: bool = False  # trained with ternary weights and int8 activations
    window_pattern: int = 1  # every n-th layer has no window; 1: all layers have it
    qk_norm: QKNorm = "before_rope"  # if the file has these norms
    has_experts: bool = False
    has_swiglu_limit: bool = False  # of experts, in the key swiglu_clamp_exp
    rope_in_windows_only: bool = False  # layers without a window have no position encoding
    divides_logits: bool = False  # by the key logit_scale, by which others multiply
    scales_theta: bool = False  # by a power of the key rope.scaling.alpha
    has_rope_pattern: bool = False  # a key names the layers with RoPE
    has_sinks: bool = False  # tensors add a weight to the softmax of each head


_ARCHITECTURES = (
    # Also Mistral, Falcon3, Falcon-E, SmolLM2.
    Architecture("llama", permutes=True),
    Architecture("qwen2"),
    Architecture("qwen3"),
    Architecture("gemma3", ffn="geglu", scale_embedding=True, window_pattern=6),
    Architecture("hunyuan-dense", qk_norm="after_rope", scales_theta=True),
    Architecture("minicpm", permutes=True, divides_logits=True),
    Architecture(
        "granite_swa", permutes=True, divides_logits=True, has_rope_pattern=True, has_sinks=True
    ),
    Architecture("qwen3moe", ffn="moe", has_experts=True),
    Architecture(
        "maple", ffn="moe", has_experts=True, has_swiglu_limit=True, rope_in_windows_only=True
    ),
    # Microsoft's files of 2B4T. llama.cpp and bitnet.cpp run them with SiLU, which is wrong.
    Architecture("bitnet-b1.58", ffn="relu2", sub_norm=True, is_ternary=True),
    Architecture("bitnet-25", ffn="relu2", sub_norm=True, is_ternary=True),
    Architecture("bitnet", ffn=None, sub_norm=True, is_ternary=True),
)
ARCHITECTURES = {each.name: each for each in _ARCHITECTURES}

# Our part of a layer's parameter name, and theirs in blk.I.NAME.
_LAYER_NAMES = {
    "mixer_norm.weight": "attn_norm.weight",
    "mixer.q_proj.weight": "attn_q.weight",
    "mixer.k_proj.weight": "attn_k.weight",
    "mixer.v_proj.weight": "attn_v.weight",
    "mixer.q_proj.bias": "attn_q.bias",
    "mixer.k_proj.bias": "attn_k.bias",
    "mixer.v_proj.bias": "attn_v.bias",
    "mixer.q_norm.weight": "attn_q_norm.weight",
    "mixer.k_norm.weight": "attn_k_norm.weight",
    "mixer.sub_norm.weight": "attn_sub_norm.weight",
    "mixer.out_proj.weight": "attn_output.weight",
    "mixer_post_norm.weight": "post_attention_norm.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "ffn.gate_proj.weight": "ffn_gate.weight",
    "ffn.up_proj.weight": "ffn_up.weight",
    "ffn.sub_norm.weight": "ffn_sub_norm.weight",
    "ffn.down_proj.weight": "ffn_down.weight",
    "ffn_post_norm.weight": "post_ffw_norm.weight",
    # microsoft/BitNet's embedding models
    "mixer.q_proj.norm.weight": "attn_q_norm_in.weight",
    "mixer.k_proj.norm.weight": "attn_k_norm_in.weight",
    "mixer.v_proj.norm.weight": "attn_v_norm_in.weight",
    "mixer.out_proj.norm.weight": "attn_output_norm_in.weight",
    "ffn.gate_proj.norm.weight": "ffn_gate_norm_in.weight",
    "ffn.up_proj.norm.weight": "ffn_up_norm_in.weight",
    "ffn.down_proj.norm.weight": "ffn_down_norm_in.weight",
}
_ROUTER = "ffn.router.weight"
_EXPERT_NAMES = {
    _ROUTER: "ffn_gate_inp.weight",
    "ffn.gate_proj.weight": "ffn_gate_exps.weight",
    "ffn.up_proj.weight": "ffn_up_exps.weight",
    "ffn.down_proj.weight": "ffn_down_exps.weight",
}
_NAMES = {
    "embedding.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "head.weight": "output.weight",
}
# Divisors of RoPE frequencies: configuration, not parameters.
ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")

# The logarithm of the weight that the softmax of a head adds to its sum, blk.I.NAME.
SINKS = "attn_sinks.weight"
NO_SINK = -1e30  # adds 0

# Architectures of published low-bit models that are refused, and the features that they need.
_MISSING = {
    "qwen35": "gated delta-net layers, convolutions of four positions and output gates",
    "qwen35moe": "gated delta-net layers, convolutions of four positions and output gates",
}


def tensor_name(name: str, has_experts: bool = False) -> str:
    """Return the GGUF name of a parameter of `mixers.model_parameters`."""
    if name in _NAMES:
        return _NAMES[name]
    _, layer, part = name.split(".", 2)
    names = _LAYER_NAMES | _EXPERT_NAMES if has_experts else _LAYER_NAMES
    return f"blk.{layer}.{names[part]}"


def tensor_shape(name: str, shape: tuple[int, ...], n_experts: int) -> tuple[int, ...]:
    """Return the shape in a GGUF file of a parameter: experts have a dimension of their own."""
    part = name.split(".", 2)[-1]
    if not n_experts or part not in _EXPERT_NAMES or part == _ROUTER:
        return shape
    return n_experts, shape[0] // n_experts, *shape[1:]


def architecture_of(metadata: Mapping[str, Value], path: Path) -> Architecture:
    """Return the architecture of a file; ConfigError, naming `path`, if it is not supported."""
    for key in metadata:
        if key.startswith("prism.hadamard."):
            raise ConfigError(
                f"{path}: key {shown(key)}: the weights are in a rotated basis, which needs a "
                "Walsh-Hadamard transform of the activations of each matrix that is not supported"
            )
        if key.startswith("prism."):
            raise ConfigError(
                f"{path}: key {shown(key)} (value {shown(metadata[key], 80)}) is not supported; it "
                "may change what the model computes"
            )
    name = metadata.get("general.architecture")
    if isinstance(name, str) and name in ARCHITECTURES:
        return ARCHITECTURES[name]
    needed = _MISSING.get(name) if isinstance(name, str) else None
    raise ConfigError(
        f"{path}: general.architecture must be one of {', '.join(ARCHITECTURES)} but is "
        + shown(name)
        + (f", which needs {needed}" if needed else "")
    )
