"""The closed table of model families: how the fields of a config.json map to ModelConfig.

Letters: H query heads   D head size
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from msgspec import Meta

from yocobit.config import FeedForwardKind, Mixer, ModelConfig, QKNorm
from yocobit.errors import ConfigError, shown
from yocobit.importers.huggingface.mlx import MLXQuantization
from yocobit.importers.huggingface.names import EMBEDDING, HUNYUAN_NORMS, POST_NORMS
from yocobit.importers.huggingface.quantization import (
    MASTER_WEIGHTS,
    BitNetQuantization,
    quantization_of,
)
from yocobit.importers.huggingface.rope import SCALED_CONTEXTS, Rope, rope_of
from yocobit.settings import Count, Positive, PositiveFraction, Settings

_ACTIVATIONS: dict[str, FeedForwardKind] = {
    "silu": "swiglu",
    "relu2": "relu2",
    "gelu_pytorch_tanh": "geglu",
}
_MIXERS: dict[str, Mixer] = {"full_attention": "full", "sliding_attention": "window"}


@dataclass(frozen=True)
class Family:
    """One `model_type`. The fields are the defaults of its configuration class in transformers."""

    activation: str = "silu"
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    local_rope_theta: float | None = None  # of sliding-window layers; None: rope_theta
    tie_embeddings: bool = False
    head_size: int | None = None  # D; None: hidden_size / num_attention_heads
    sub_norm: bool = False  # always has SubLN
    qkv_bias: bool = False
    qk_norm: QKNorm = "none"
    sliding_window: int | None = None  # tokens; a null in the file means none
    # Layers with a sliding window: those of layer_types, or all if sliding_window is set.
    window: Literal["layer_types", "all"] = "layer_types"
    window_pattern: int | None = None  # without layer_types, every n-th layer has full attention
    window_is_default: bool = False  # False: only with use_sliding_window
    norm_offset: float = 0.0  # added to the stored weights of norms
    scale_embedding: bool = False
    query_scale: float | None = None  # default of query_pre_attn_scalar
    mup: bool = False  # scale_emb, scale_depth and dim_model_base (arXiv:2404.06395)
    embedding: str = EMBEDDING  # module
    block: Mapping[str, str] = dataclasses.field(default_factory=dict)  # tensor names
    post_norms: bool = False
    is_ternary: bool = False  # also without a quantization_config
    partial_rotary_factor: float = 1.0
    rope_in_windows_only: bool = False
    has_experts: bool = False  # in every layer
    norm_topk_prob: bool = True  # of experts: the router's weights add up to 1
    swiglu_limit: float | None = None


FAMILIES: Mapping[str, Family] = {
    "bitnet": Family(
        activation="relu2", norm_eps=1e-5, rope_theta=500000.0, sub_norm=True, is_ternary=True
    ),
    "llama": Family(),
    "mistral": Family(sliding_window=4096, window="all"),
    "qwen2": Family(qkv_bias=True, sliding_window=4096),
    "qwen3": Family(qk_norm="before_rope", head_size=128, sliding_window=4096),
    "hunyuan_v1_dense": Family(qk_norm="after_rope", norm_eps=1e-5, block=HUNYUAN_NORMS),
    "maple": Family(
        qk_norm="before_rope",
        embedding="word_embeddings",
        sliding_window=512,
        window_is_default=True,
        partial_rotary_factor=0.5,
        rope_in_windows_only=True,
        has_experts=True,
        swiglu_limit=7.0,
    ),
    "minicpm": Family(tie_embeddings=True, mup=True),
    "qwen3_moe": Family(
        qk_norm="before_rope", sliding_window=4096, has_experts=True, norm_topk_prob=False
    ),
    "gemma3_text": Family(
        activation="gelu_pytorch_tanh",
        rope_theta=1e6,
        local_rope_theta=10000.0,
        tie_embeddings=True,
        head_size=256,
        qk_norm="before_rope",
        sliding_window=4096,
        window_pattern=6,
        window_is_default=True,
        norm_offset=1.0,
        scale_embedding=True,
        query_scale=256.0,
        block=POST_NORMS,
        post_norms=True,
    ),
}
_DELTA_NET = (
    "gated delta-net layers, which need the delta rule, a causal convolution and output gates"
)
# Features of other families that the engine lacks.
_REFUSED = {
    "falcon": "parallel blocks, LayerNorm and one KV head; Falcon3 and Falcon-E are 'llama'",
    "hgrn_bit": "an elementwise gated recurrence",
    "gemma3": "a vision tower; its text model is 'gemma3_text'",
    "qwen3_5": _DELTA_NET,
    "qwen3_5_text": _DELTA_NET,
    "prism_hadamard_qwen35": f"weights in a rotated basis, which needs a signed Walsh-Hadamard "
    f"transform before each projection and after the embedding, and {_DELTA_NET}",
}


_FLAGS = ("attention_bias", "mlp_bias", "use_bias", "use_bidirectional_attention", "use_cla")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedConfig(Settings):
    """The keys of a config.json that change what a model computes; all others are ignored."""

    model_type: str
    vocab_size: Annotated[int, Meta(ge=1, le=1 << 20)]
    hidden_size: Annotated[int, Meta(ge=1, le=1 << 16)]
    intermediate_size: Annotated[int, Meta(ge=1, le=1 << 17)]
    num_hidden_layers: Annotated[int, Meta(ge=1, le=1024)]
    num_attention_heads: Annotated[int, Meta(ge=1, le=1 << 16)]
    num_key_value_heads: Annotated[int, Meta(ge=1, le=1 << 16)] | None = None
    head_dim: Annotated[int, Meta(ge=1, le=1 << 16)] | None = None
    hidden_act: str | None = None
    hidden_activation: str | None = None
    rms_norm_eps: Annotated[float, Meta(ge=1e-20, le=1)] | None = None
    tie_word_embeddings: bool | None = None
    max_position_embeddings: Count | None = None
    query_pre_attn_scalar: Positive | None = None
    scale_emb: Positive = 1.0  # multiplies embeddings
    scale_depth: Positive = 1.0  # divided by sqrt(layers), multiplies residual branches
    dim_model_base: Positive = 1.0  # divided by hidden_size, multiplies logits

    rope_theta: float | None = None
    rope_local_base_freq: float | None = None
    partial_rotary_factor: PositiveFraction | None = None
    original_max_position_embeddings: Count | None = None
    rope_parameters: Any = None
    rope_scaling: Any = None

    num_experts: Any = None
    num_local_experts: Any = None  # its name in later versions of transformers
    num_experts_per_tok: Annotated[int, Meta(ge=1, le=64)] | None = None
    moe_intermediate_size: Annotated[int, Meta(ge=1, le=1 << 17)] | None = None
    norm_topk_prob: bool | None = None

    sliding_window: Annotated[int, Meta(ge=1, le=1 << 24)] | None = None
    use_sliding_window: bool | None = None
    max_window_layers: Annotated[int, Meta(ge=0)] | None = None
    layer_types: tuple[str, ...] | None = None
    sliding_window_pattern: Count | None = None

    quantization: Any = None  # of MLX, which repeats it as quantization_config
    quantization_config: Any = None
    weight_bits: Literal[1] | None = None  # of 1bitLLM: ternary
    input_bits: Literal[8] | None = None
    is_bitnet_config: bool | None = None  # of Falcon-E

    use_qk_norm: Any = None
    nope_on_global_attention: Any = None
    decoder_sparse_step: Any = None  # of layers with experts

    # Features that the engine does not have.
    attention_bias: Any = None  # would add a bias to o_proj
    mlp_bias: Any = None
    use_bias: Any = None
    use_bidirectional_attention: Any = None
    use_cla: Any = None  # of HunYuan: K and V of another layer
    final_logit_softcapping: Any = None
    attn_logit_softcapping: Any = None
    n_routed_experts: Any = None
    num_shared_experts: Any = None
    first_k_dense_replace: Any = None  # layers without experts
    mlp_only_layers: Any = None  # likewise
    num_kv_shared_layers: Any = None
    sparse_config: Any = None  # of MiniCPM 4.1: block-sparse attention to long texts

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [field.name for field in dataclasses.fields(self)]
        for name in names[names.index("attention_bias") :]:
            is_flag = name in _FLAGS
            self.require(not getattr(self, name), name, f"must be {'false' if is_flag else 'null'}")
        for name in ("use_qk_norm", "nope_on_global_attention"):
            self.require(getattr(self, name) is not False, name, "must be true")
        self.require(self.decoder_sparse_step in (None, 1), "decoder_sparse_step", "must be 1")


class Published(NamedTuple):
    """A config.json in our terms. HuggingFaceCheckpoint adds what follows from tensor names."""

    config: ModelConfig
    family: Family
    quantization: BitNetQuantization | MLXQuantization | None


def published(fields: Mapping[str, Any], file: str) -> Published:
    """Convert the fields of a config.json; ConfigError names `file` and the unsupported value."""
    kind = fields.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        needed = _REFUSED.get(kind) if isinstance(kind, str) else None
        raise ConfigError(
            f"{file}: model_type must be one of {', '.join(map(repr, FAMILIES))} but is "
            f"{shown(kind)}" + (f", which has {needed}" if needed else "")
        )
    known = {field.name for field in dataclasses.fields(PublishedConfig)}
    family = FAMILIES[kind]
    keys = {"sliding_window": family.sliding_window, **fields}
    theirs = PublishedConfig.from_dict({k: v for k, v in keys.items() if k in known}, file)
    quantization: BitNetQuantization | MLXQuantization | None
    if (mlx := _object(theirs.quantization, "quantization", file)) is not None:
        quantization = MLXQuantization.of(mlx, f"{file}: quantization")
    else:
        bitnet = _object(theirs.quantization_config, "quantization_config", file)
        quantization = quantization_of(bitnet, f"{file}: quantization_config")
    if quantization is None and (
        family.is_ternary or theirs.is_bitnet_config or theirs.weight_bits
    ):
        quantization = MASTER_WEIGHTS
    return Published(
        ModelConfig.from_dict(_values(theirs, family, file), file), family, quantization
    )


def _values(theirs: PublishedConfig, family: Family, file: str) -> dict[str, Any]:
    """Return the fields of ModelConfig."""
    n_heads = theirs.num_attention_heads
    n_kv_heads = theirs.num_key_value_heads or n_heads
    even = theirs.hidden_size // n_heads
    head_size = theirs.head_dim or family.head_size or even
    layers, window = _layers(theirs, family, file)
    activation = theirs.hidden_activation or theirs.hidden_act or family.activation
    if activation not in _ACTIVATIONS:
        known = " or ".join(_ACTIVATIONS)
        raise ConfigError(f"{file}: hidden_act must be {known} but is {shown(activation)}")
    is_default_size = head_size * n_heads == theirs.hidden_size and head_size % 8 == 0
    query_scale = theirs.query_pre_attn_scalar or family.query_scale or head_size
    return {
        "vocab_size": theirs.vocab_size,
        "d_model": theirs.hidden_size,
        "layers": layers,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "n_self_heads": n_heads,
        "n_self_kv_heads": n_kv_heads,
        **_feed_forward(theirs, family, _ACTIVATIONS[activation], file),
        "sub_norm": family.sub_norm,
        "norm_eps": theirs.rms_norm_eps or family.norm_eps,
        "tie_embeddings": _or(theirs.tie_word_embeddings, family.tie_embeddings),
        "scale_embedding": family.scale_embedding,
        "head_size": None if is_default_size else head_size,
        "attention_scale": None if query_scale == head_size else query_scale**-0.5,
        "qk_norm": family.qk_norm,
        "qkv_bias": family.qkv_bias,
        "post_norms": family.post_norms,
        "trained_context": theirs.max_position_embeddings,
        **(_mup_scales(theirs) if family.mup else {}),
        **({} if window is None else {"window": window}),
        **_ropes(theirs, family, head_size, set(layers), file),
    }


def _feed_forward(
    theirs: PublishedConfig, family: Family, activation: FeedForwardKind, file: str
) -> dict[str, Any]:
    """Return kind and width of the FFN, and its experts."""
    if not family.has_experts:
        for name in ("num_experts", "num_local_experts"):
            if (value := getattr(theirs, name)) not in (None, 0, 1):  # 1: dense HunYuan
                raise ConfigError(f"{file}: {name} must be null but is {shown(value)}")
        return {"ffn": activation, "d_ff": theirs.intermediate_size}
    fields = {
        "n_experts": ("num_experts", _or(theirs.num_experts, theirs.num_local_experts)),
        "n_active_experts": ("num_experts_per_tok", theirs.num_experts_per_tok),
        "d_ff": ("moe_intermediate_size", theirs.moe_intermediate_size),
    }
    for name, value in fields.values():
        if value is None:
            raise ConfigError(f"{file}: key '{name}' is missing")
    if activation != "swiglu":
        raise ConfigError(f"{file}: hidden_act must be silu with experts but is {activation}")
    if not _or(theirs.norm_topk_prob, family.norm_topk_prob):
        raise ConfigError(f"{file}: norm_topk_prob must be true but is false")
    values = {name: value for name, (_, value) in fields.items()}
    return {"ffn": "moe", "swiglu_limit": family.swiglu_limit, **values}


def _mup_scales(theirs: PublishedConfig) -> dict[str, float]:
    """Return the scales of a model with maximal update parametrisation."""
    return {
        "embedding_scale": theirs.scale_emb,
        "residual_scale": theirs.scale_depth / theirs.num_hidden_layers**0.5,
        "logit_scale": theirs.dim_model_base / theirs.hidden_size,
    }


def _layers(theirs: PublishedConfig, family: Family, file: str) -> tuple[list[Mixer], int | None]:
    """Return the mixer of each layer, and the window."""
    n_layers, window = theirs.num_hidden_layers, theirs.sliding_window
    if family.window == "all" and theirs.layer_types is None:
        return [("full" if window is None else "window")] * n_layers, window
    if not (family.window_is_default or theirs.use_sliding_window or family.window == "all"):
        window = None
    elif family.has_experts and not family.window_is_default:
        raise ConfigError(f"{file}: use_sliding_window must be false with experts but is true")
    if theirs.layer_types is not None:
        kinds = list(theirs.layer_types)
    elif family.window_pattern is not None:
        every = theirs.sliding_window_pattern or family.window_pattern
        kinds = [
            "full_attention" if (i + 1) % every == 0 else "sliding_attention"
            for i in range(n_layers)
        ]
    elif family.window_is_default:
        raise ConfigError(f"{file}: key 'layer_types' is missing")
    elif window is not None:
        if theirs.max_window_layers is None:
            raise ConfigError(f"{file}: key 'max_window_layers' is missing")
        n_full = min(theirs.max_window_layers, n_layers)
        kinds = ["full_attention"] * n_full + ["sliding_attention"] * (n_layers - n_full)
    else:
        kinds = ["full_attention"] * n_layers
    if len(kinds) != n_layers:
        raise ConfigError(f"{file}: layer_types must have {n_layers} items but has {len(kinds)}")
    for kind in kinds:
        if kind not in _MIXERS:
            raise ConfigError(
                f"{file}: layer_types must be {' or '.join(_MIXERS)} but has {shown(kind)}"
            )
    if "sliding_attention" in kinds and window is None:
        raise ConfigError(f"{file}: sliding_window must be set for layers of sliding_attention")
    return [_MIXERS[kind] for kind in kinds], window


def _ropes(
    theirs: PublishedConfig, family: Family, head_size: int, mixers: set[Mixer], file: str
) -> dict[str, Any]:
    """Return the RoPE fields of the mixers that the model has."""
    parameters = _object(theirs.rope_parameters, "rope_parameters", file) or {}
    scaling = _object(theirs.rope_scaling, "rope_scaling", file) or {}
    by_kind = {kind: parameters[kind] for kind in _MIXERS if kind in parameters}
    ropes: dict[Mixer, Rope] = {}
    for kind, mixer in _MIXERS.items():
        if mixer not in mixers:
            continue
        is_local = mixer == "window" and family.local_rope_theta is not None
        if by_kind:
            own = _object(by_kind.get(kind), f"rope_parameters.{kind}", file) or {}
        else:
            own = {} if is_local else (scaling or parameters)
        theta = theirs.rope_local_base_freq if is_local else theirs.rope_theta
        default = family.local_rope_theta if is_local else family.rope_theta
        values = {
            "rope_theta": default if theta is None else theta,
            "partial_rotary_factor": _or(
                theirs.partial_rotary_factor, family.partial_rotary_factor
            ),
            **{key: value for key, value in own.items() if value is not None},
        }
        if values.get("rope_type", values.get("type")) in SCALED_CONTEXTS:
            original = theirs.original_max_position_embeddings
            values |= {} if original is None else {"original_max_position_embeddings": original}
        ropes[mixer] = rope_of(values, head_size, theirs.max_position_embeddings, file)
    first = next(iter(ropes.values()))
    if any(rope.factor != first.factor for rope in ropes.values()):
        raise ConfigError(f"{file}: the attention factor of RoPE must be the same in all layers")
    result: dict[str, Any] = {"rope_theta": first.theta, "rope_factor": first.factor}
    for mixer, rope in ropes.items():
        frequencies = rope.frequencies
        if not frequencies and rope.theta != first.theta:
            frequencies = tuple(rope.theta ** (-2 * i / head_size) for i in range(head_size // 2))
        result |= {f"{mixer}_rope": "half", f"{mixer}_rope_frequencies": frequencies}
    if family.rope_in_windows_only:
        result |= {"full_rope": "none", "full_rope_frequencies": ()}
    return result


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _object(value: Any, name: str, file: str) -> dict[str, Any] | None:
    """Return a field that is an object or None; ConfigError if it is neither."""
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"{file}: {name} must be an object but is {shown(value)}")
    return value
