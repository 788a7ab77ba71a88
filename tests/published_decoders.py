"""Random small models of transformers' own classes, and their weights in our Decoder.

Together they use every architecture feature of ModelConfig. Norms and rope of transformers are in
float32; all else is in float64 on both sides.

Letters: C d_model   D head size   K input features
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.integrations.bitnet import AutoBitLinear
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from yocobit.config import ModelConfig
from yocobit.model import Decoder

V, C, D = 512, 64, 24
ORIGINAL = 16  # positions of the first training, of scaled rope
_SHAPE = {
    "vocab_size": V,
    "hidden_size": C,
    "intermediate_size": 104,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": D,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
    "pad_token_id": None,  # has a gradient
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_OWN_SHAPE = {
    "vocab_size": V,
    "d_model": C,
    "d_ff": 104,
    "n_heads": 4,
    "n_kv_heads": 2,
    "n_self_heads": 4,
    "n_self_kv_heads": 2,
    "head_size": D,
    "full_rope": "half",
    "window_rope": "half",
    "weights": "dense",
    "sub_norm": False,
    "norm_eps": 1e-6,
    "scale_embedding": False,
}
_FULL = ("full", "full")


@dataclass(frozen=True)
class Case:
    """A class of transformers with its settings, and ModelConfig for the same model."""

    kind: str  # of the class KINDConfig
    theirs: dict[str, Any]
    own: dict[str, Any]
    rope: str | None = None  # of ROPE_INIT_FUNCTIONS, for full_rope_frequencies and rope_factor

    @property
    def features(self) -> list[str]:
        """The features that do not have their default."""
        config = self.config
        return [name for name in config.to_dict() if name not in _PLAIN.to_dict()]

    @property
    def norm_offset(self) -> float:
        """What transformers adds to the weights of norms."""
        return 1.0 if self.kind == "Gemma3Text" else 0.0

    @property
    def config(self) -> ModelConfig:
        """Our configuration of the model."""
        fields = {**_OWN_SHAPE, "layers": _FULL, **self.own}
        if self.rope is not None:
            frequencies, factor = ROPE_INIT_FUNCTIONS[self.rope](self.their_config, seq_len=64)
            fields["full_rope_frequencies"] = tuple(frequencies.double().tolist())
            fields["rope_factor"] = factor
        return ModelConfig(**fields)

    @property
    def their_config(self) -> Any:
        """The configuration of transformers."""
        fields = {**_SHAPE, "num_hidden_layers": len(self.own.get("layers", _FULL)), **self.theirs}
        return getattr(transformers, f"{self.kind}Config")(**fields)


def _scaled(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1000.0, **settings}}


_PLAIN = ModelConfig(**{**_OWN_SHAPE, "layers": _FULL, "head_size": None})
_LONG = {"short_factor": [1.0] * 6, "long_factor": [1.0 + i / 4 for i in range(6)]}
_YARN = {"factor": 4.0, "original_max_position_embeddings": ORIGINAL}
_LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": ORIGINAL,
}
_GEMMA_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.0},
}
_BY_WINDOW = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}
CASES = {
    "llama": Case("Llama", {"tie_word_embeddings": True}, {"tie_embeddings": True}),
    "linear": Case("Llama", _scaled("linear", factor=2.0), {}, "linear"),
    "llama3": Case("Llama", _scaled("llama3", **_LLAMA3), {}, "llama3"),
    "yarn": Case("Llama", _scaled("yarn", **_YARN), {}, "yarn"),
    "phi3": Case(
        "Phi3",
        {
            **_scaled("longrope", partial_rotary_factor=0.75, **_LONG),
            "original_max_position_embeddings": ORIGINAL,
            "head_dim": C // 4,
        },
        {"head_size": None},
        "longrope",
    ),
    "qwen2": Case(
        "Qwen2",
        {**_BY_WINDOW, "use_sliding_window": True, "head_dim": C // 4},
        {"layers": ("window", "full"), "window": 5, "qkv_bias": True, "head_size": None},
    ),
    "qwen3": Case("Qwen3", {}, {"qk_norm": "before_rope"}),
    "hunyuan": Case("HunYuanDenseV1", {}, {"qk_norm": "after_rope"}),
    "smollm3": Case(
        "SmolLM3",
        {"no_rope_layers": [1, 0], "head_dim": C // 4, "rope_parameters": None},
        {"nope_layers": (1,), "head_size": None, "rope_theta": 2000000.0},
    ),
    "granite": Case(
        "Granite",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.25,
            "attention_multiplier": 0.125,
            "logits_scaling": 4.0,
            "head_dim": C // 4,
        },
        {
            "embedding_scale": 3.0,
            "residual_scale": 0.25,
            "attention_scale": 0.125,
            "logit_scale": 0.25,
            "head_size": None,
        },
    ),
    "gemma3": Case(
        "Gemma3Text",
        {**_BY_WINDOW, "rope_parameters": _GEMMA_ROPE, "query_pre_attn_scalar": 16},
        {
            "layers": ("window", "full"),
            "window": 5,
            "qk_norm": "before_rope",
            "post_norms": True,
            "ffn": "geglu",
            "attention_scale": 0.25,
            "embedding_scale": 8.0,
            "window_rope_frequencies": tuple(100.0 ** -(i / 12) for i in range(12)),
            "full_rope_frequencies": tuple(1000.0 ** -(i / 12) / 2 for i in range(12)),
        },
    ),
    "bitnet": Case(
        "Qwen3",
        {},
        {
            "qk_norm": "before_rope",
            "weights": "ternary",
            "projection_norms": True,
            "projection_norm_eps": 1e-5,
            "head_norm": True,
        },
    ),
}


def pair(name: str) -> tuple[Any, Decoder]:
    """Return a random model of transformers and the Decoder with its weights, in float64."""
    torch.manual_seed(0)
    case = CASES[name]
    kind = f"{case.kind.removesuffix('Text')}ForCausalLM"
    theirs = getattr(transformers, kind)(case.their_config).double().eval()
    if case.config.projection_norms:
        _use_bitlinear(theirs, case.config.projection_norm_eps)
    with torch.no_grad():
        for parameter_name, parameter in theirs.named_parameters():
            _randomize(parameter, parameter_name, case)
    ours = Decoder(case.config).double().eval()
    ours.load_state_dict(translated(theirs.state_dict(), case, case.norm_offset))
    return theirs, ours


def translated(
    weights: dict[str, Tensor], case: Case, norm_offset: float = 0.0
) -> dict[str, Tensor]:
    """Return weights of transformers, or their gradients, under our names."""
    has_post_norms = case.config.post_norms
    names = {
        r"^model\.": "",
        r"^lm_head\.": "head.",
        r"^embed_tokens": "embedding",
        "input_layernorm": "mixer_norm",
        "post_attention_layernorm": "mixer_post_norm" if has_post_norms else "ffn_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "ffn_post_norm",
        r"self_attn\.": "mixer.",
        r"o_proj": "out_proj",
        r"query_layernorm": "q_norm",
        r"key_layernorm": "k_norm",
        r"mlp\.": "ffn.",
        r"rms_norm\.": "norm.",
    }
    result = {}
    for name, weight in weights.items():
        for pattern, own in names.items():
            name = re.sub(pattern, own, name)
        result[name] = weight + norm_offset if "norm" in name else weight
    return _split_fused(result, case.config)


def _split_fused(weights: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Return weights with the fused projections of Phi-3 apart."""
    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    fused = {
        "qkv_proj": (("q_proj", "k_proj", "v_proj"), [q, kv, kv]),
        "gate_up_proj": (("gate_proj", "up_proj"), [config.d_ff] * 2),
    }
    result = {}
    for name, weight in weights.items():
        parts = next((fused[part] for part in name.split(".") if part in fused), None)
        if parts is None:
            result[name] = weight
            continue
        for own, rows in zip(parts[0], weight.split(parts[1]), strict=True):
            result[re.sub("(qkv|gate_up)_proj", own, name)] = rows
    return result


def _use_bitlinear(model: nn.Module, eps: float) -> None:
    """Replace the linear layers by transformers' BitLinear with its own norm; the head's has only
    the norm."""
    for name, linear in list(model.named_modules()):
        if not isinstance(linear, nn.Linear):
            continue
        layer = AutoBitLinear(
            linear.in_features,
            linear.out_features,
            bias=False,
            dtype=torch.float64,
            online_quant=True,
            use_rms_norm=True,
            rms_norm_eps=eps,
        )
        if name == "lm_head":
            layer.forward = _norm_then_linear(layer)  # type: ignore[method-assign]
        model.set_submodule(name, layer)


def _norm_then_linear(layer: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: nn.functional.linear(layer.rms_norm(x), layer.weight)


def _randomize(parameter: Tensor, name: str, case: Case) -> None:
    if "norm" in name:
        parameter.normal_(1 - case.norm_offset, 0.3)
    else:
        parameter.normal_(std=0.5 if parameter.ndim == 1 else parameter.shape[1] ** -0.5)
