"""ModelConfig: the shape and numerics of a model, stored with every checkpoint and packed model.

It is immutable and validated on construction, so code that receives one does not validate it
again. Training settings are in yocobit.training.config.

Letters: C d_model   H n_heads   G n_kv_heads   D head size   F d_ff   V vocab_size   L layers
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from yocobit import _native
from yocobit.errors import ConfigError as ConfigError  # re-exported
from yocobit.errors import shown
from yocobit.reading import read_json
from yocobit.settings import Count, Natural, Positive, Settings

MAX_ROPE_THETA = 1e12
MODEL_TYPE = "yocobit"  # model_type in config.json
# Keys of config.json that only transformers reads.
TRANSFORMERS_KEYS = (
    "model_type",
    "architectures",
    "dtype",
    "transformers_version",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "auto_map",
)
LABEL_KEYS = ("id2label", "label2id", "problem_type")  # likewise, with a classification head

Mixer = Literal["retention", "window", "full", "cross", "gmu", "gate"]
FeedForwardKind = Literal["swiglu", "geglu", "relu2", "sign", "moe"]
# "dense", or the name of a weight format (packing/formats.py).
WeightKind = Literal[
    "ternary",
    "ternary_row",
    "sign",
    "ternary_g64",
    "ternary_g128",
    "sign_g128",
    "int2_g64",
    "int2_g128",
    "odd_g128",
    "ternary_row_a16",
    "dense",
]
RopeKind = Literal["interleaved", "half", "none"]
SharedKVType = Literal["float", "int8", "int4"]
CrossAttention = Literal["full", "index"]
QKNorm = Literal["none", "before_rope", "after_rope"]
Pooling = Literal["mean", "last"]

BLOCK = _native.BLOCK_POSITIONS  # positions per block, the unit of sparse attention
# The first and last blocks of a context, which every token attends to.
FIRST_BLOCKS, LAST_BLOCKS = _native.FIRST_BLOCKS, _native.LAST_BLOCKS
CANDIDATES_PER_BLOCK = _native.CANDIDATES_PER_BLOCK  # of the index, per selected block
_MIN_POSITIONS, _MAX_POSITIONS = 4 * BLOCK, 1 << 20  # of sparse attention
_POSITIONS_RULE = f"a multiple of {BLOCK}, from {_MIN_POSITIONS} to {_MAX_POSITIONS}"

CROSS_DECODER: tuple[Mixer, ...] = ("cross", "gmu")  # mixers.py has the record of each mixer
_SELF_ATTENTION: tuple[Mixer, ...] = ("window", "full")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """The shape and numerics of one decoder-decoder (or plain decoder) language model.

    `layers` names the mixer of each block from input to output. The blocks before the first
    "cross" or "gmu" are the self-decoder. Keys and values are computed once from its output, and
    every "cross" block attends to them (YOCO, arXiv:2405.05254). Every "gmu" block gates the mixer
    output of the last self-decoder block (SambaY, arXiv:2507.06607). Without "cross" and "gmu" the
    model is a plain decoder.
    """

    vocab_size: Annotated[int, Meta(ge=1, le=1 << 20)]  # V; in training, that of the tokenizer
    # C, the width of the residual stream; a multiple of 8.
    d_model: Annotated[int, Meta(ge=1, le=1 << 16, multiple_of=8)]
    layers: tuple[Mixer, ...]  # the mixer of each block, from input to output
    # F, the width of the feed-forward network; a multiple of 8.
    d_ff: Annotated[int, Meta(ge=1, le=1 << 17, multiple_of=8)]
    n_heads: Count  # H, query heads of "full" and "cross"
    n_kv_heads: Count  # G, KV heads of "full" and "cross"; divides n_heads
    n_self_heads: Count  # heads of "retention", query heads of "window"
    n_self_kv_heads: Count  # KV heads of "window"; divides n_self_heads
    # Positions that "window" attends to, including the current one.
    window: Annotated[int, Meta(ge=1, le=1 << 24)] = 256
    # SwiGLU, GeGLU, squared ReLU, W_down sign(W_up x), or a mixture of SwiGLU experts.
    ffn: FeedForwardKind = "swiglu"
    weights: WeightKind = "ternary"  # quantisation of projections in training
    sub_norm: bool = True  # SubLN: RMSNorm before output projections and W_down
    # RoPE of "retention": adjacent pairs, Llama's halves, or none.
    retention_rope: RopeKind = "interleaved"
    window_rope: RopeKind = "interleaved"  # the same for "window"
    full_rope: RopeKind = "interleaved"  # the same for "full"
    cross_rope: RopeKind = "interleaved"  # the same for "cross"
    # The base of the rope frequencies.
    rope_theta: Annotated[float, Meta(gt=1, le=MAX_ROPE_THETA)] = 10000.0
    shared_kv: SharedKVType = "float"  # training quantises the shared K/V as a cache of this type
    # Positions that "cross" attends to: all, or the blocks that an index selects.
    cross_attention: CrossAttention = "full"
    cross_positions: int = 2048  # positions per token with an index
    norm_eps: Annotated[float, Meta(ge=1e-20, le=1)] = 1e-5  # added to the mean square in RMSNorm
    tie_embeddings: bool = False  # the head shares the embedding's weights
    # Multiply embeddings by sqrt(d_model); published BitNet models do not.
    scale_embedding: bool = True

    # Features of published models; config.json omits those with their default value.
    # This group is for models whose mixers are all "full" or "window".

    # D; None: d_model / n_heads and d_model / n_self_heads.
    head_size: Annotated[int, Meta(ge=8, le=1024, multiple_of=4)] | None = None
    attention_scale: Positive | None = None  # multiplies q k before softmax; None: 1 / sqrt(D)
    qk_norm: QKNorm = "none"  # RMSNorm of each head of Q and K, before or after RoPE
    qkv_bias: bool = False  # q_proj, k_proj and v_proj add a bias
    # "full": the angle per position of each rotated pair of a head, for at most D / 2 pairs; other
    # values of the head are not rotated. (): the frequencies of rope_theta.
    full_rope_frequencies: tuple[Positive, ...] = ()
    window_rope_frequencies: tuple[Positive, ...] = ()  # the same for "window"
    rope_factor: Positive = 1.0  # multiplies cosines and sines (YaRN, LongRoPE)
    nope_layers: tuple[Natural, ...] = ()  # indices of the layers without RoPE
    projection_norms: bool = False  # RMSNorm before each projection, with its own weight
    # Added to the mean square in these norms and in that of head_norm.
    projection_norm_eps: Annotated[float, Meta(ge=1e-20, le=1)] = 1e-6

    # This group is for all models.

    head_norm: bool = False  # a further RMSNorm before the head, with projection_norm_eps
    post_norms: bool = False  # RMSNorm after each mixer and each FFN, before the residual addition
    embedding_scale: Positive | None = None  # multiplies embeddings; None: as scale_embedding
    residual_scale: Positive = 1.0  # multiplies the outputs of mixers and FFNs
    logit_scale: Positive = 1.0  # multiplies the logits
    # Positions of a sequence in training, as the checkpoint names it; the engine computes longer
    # sequences in the same way, with less accurate results.
    trained_context: Count | None = None
    pooling: Pooling = "mean"  # of hidden states in embeddings, unless a request names another
    n_experts: Annotated[int, Meta(ge=0, le=1024)] = 0  # E of "moe"; d_ff is the width of one
    n_active_experts: Annotated[int, Meta(ge=0, le=64)] = 0  # per token
    swiglu_limit: Positive | None = None  # SwiGLU: gate <= limit, -limit <= up <= limit
    # Weights-only quantisation: round activations to int16 instead of int8 for each group.
    exact_activations: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 < len(self.layers) <= 1024, "layers", "must name 1 to 1024 mixers")
        for name in ("n_heads", "n_self_heads") if self.head_size is None else ():
            heads = getattr(self, name)
            rule = f"must divide d_model = {self.d_model} into heads of a multiple of 8 values"
            self.require(self.d_model % (8 * heads) == 0, name, rule)
            rule = f"must divide d_model = {self.d_model} into heads of at most 1024 values"
            self.require(self.d_model <= 1024 * heads, name, rule)
        for kv, query in (("n_kv_heads", "n_heads"), ("n_self_kv_heads", "n_self_heads")):
            n_query = getattr(self, query)
            self.require(n_query % getattr(self, kv) == 0, kv, f"must divide {query} = {n_query}")
        is_valid = _is_budget(self.cross_positions)
        self.require(is_valid, "cross_positions", f"must be {_POSITIONS_RULE}")
        cross = [mixer for mixer in self.layers if mixer in CROSS_DECODER]
        if cross:
            rule = f"must have a self-decoder block before '{cross[0]}'"
            self.require(self.layers[0] != cross[0], "layers", rule)
            rule = "must keep every 'cross' and 'gmu' after the last self-decoder block"
            self.require(list(self.layers[-len(cross) :]) == cross, "layers", rule)
            rule = "must have a 'cross' if it has a 'gmu', which attends to no other position,"
            self.require("cross" in cross, "layers", rule)
        self._check_experts()
        self._check_features()

    def _check_experts(self) -> None:
        for name in ("n_experts", "n_active_experts"):
            rule = f"must be {'at least 1' if self.ffn == 'moe' else '0'} with ffn = '{self.ffn}'"
            self.require((getattr(self, name) > 0) == (self.ffn == "moe"), name, rule)
        rule = f"must be at most n_experts = {self.n_experts}"
        self.require(self.n_active_experts <= self.n_experts, "n_active_experts", rule)
        rule = f"times n_experts = {self.n_experts} must be at most {1 << 24}"
        for name in ("d_ff", "d_model") if self.ffn == "moe" else ():
            self.require(getattr(self, name) * self.n_experts <= 1 << 24, name, rule)
        rule = "must be left out with ffn = 'moe'"
        self.require(not (self.ffn == "moe" and self.projection_norms), "projection_norms", rule)
        rule = f"must be left out with ffn = '{self.ffn}'"
        has_swiglu = self.ffn in ("swiglu", "moe")
        self.require(self.swiglu_limit is None or has_swiglu, "swiglu_limit", rule)

    def _check_features(self) -> None:
        if not set(self.layers) <= set(_SELF_ATTENTION):
            for name, default in SELF_ATTENTION_DEFAULTS.items():
                rule = "must be left out unless every layer is 'full' or 'window'"
                self.require(getattr(self, name) == default, name, rule)
        elif self.head_size is not None:
            for name in ("n_heads", "n_self_heads"):
                width = getattr(self, name) * self.head_size
                rule = f"times head_size = {self.head_size} must be at most {1 << 16}"
                self.require(width <= 1 << 16, name, rule)
                rule = f"times head_size = {self.head_size} must be a multiple of 8"
                self.require(width % 8 == 0, name, rule)
            rule = "must be 'none' unless head_size is a multiple of 8"
            self.require(self.head_size % 8 == 0 or self.qk_norm == "none", "qk_norm", rule)
        for mixer, head_dim in (("full", self.head_dim), ("window", self.self_head_dim)):
            name = f"{mixer}_rope_frequencies"
            if not (frequencies := getattr(self, name)):
                continue
            rule = f"must have at most head size / 2 = {head_dim // 2} values"
            self.require(len(frequencies) <= head_dim // 2, name, rule)
            rule = f"must be left out unless {mixer}_rope is 'half'"
            self.require(getattr(self, f"{mixer}_rope") == "half", name, rule)
        rule = f"must be increasing indices of layers, below {len(self.layers)},"
        is_increasing = list(self.nope_layers) == sorted(set(self.nope_layers))
        is_inside = all(index < len(self.layers) for index in self.nope_layers)
        self.require(is_increasing and is_inside, "nope_layers", rule)

    @property
    def head_dim(self) -> int:
        """D of full and cross attention."""
        return self.head_size or self.d_model // self.n_heads

    @property
    def self_head_dim(self) -> int:
        """D of retention and sliding-window attention."""
        return self.head_size or self.d_model // self.n_self_heads

    @property
    def embedding_factor(self) -> float:
        """The factor of embeddings."""
        if self.embedding_scale is not None:
            return self.embedding_scale
        return math.sqrt(self.d_model) if self.scale_embedding else 1.0

    @property
    def n_self_layers(self) -> int:
        """Blocks before the first "cross" or "gmu"."""
        return sum(mixer not in CROSS_DECODER for mixer in self.layers)

    @property
    def has_cross_decoder(self) -> bool:
        """Whether the model is a decoder-decoder: it has "cross" layers."""
        return "cross" in self.layers

    def replace(self, **changes: Any) -> ModelConfig:
        """Return a validated copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def has_index(self) -> bool:
        """Whether the cross layers attend to the blocks that an index selects."""
        return self.has_cross_decoder and self.cross_attention == "index"

    @property
    def attention(self) -> str | None:
        """The cross attention in the syntax of `attending`; None without cross layers."""
        if not self.has_cross_decoder:
            return None
        kind = self.cross_attention
        return kind if kind == "full" else f"{kind}:{self.cross_positions}"

    def attending(self, to: str) -> ModelConfig:
        """Return a copy whose cross layers attend to "full" or "index:2048".

        The number is cross_positions. ConfigError for other strings and without cross layers.
        """
        kind, positions = parse_attention(to)
        if not self.has_cross_decoder:
            raise ConfigError(
                f"attention must not be given for a model without cross layers but is {to!r}; "
                "leave it out"
            )
        if positions is None:
            return self.replace(cross_attention=kind)
        return self.replace(cross_attention=kind, cross_positions=positions)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, without the features that have their default."""
        return without_default_features(self.fields())

    def features(self) -> dict[str, Any]:
        """Return the features that do not have their default, as JSON values."""
        return {name: value for name, value in self.to_dict().items() if name in _FEATURES}

    def fields(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    def to_json(self) -> dict[str, Any]:
        """Return the content of config.json: the fields, and keys for transformers."""
        for_transformers = {"model_type": MODEL_TYPE, "architectures": ["YocobitForCausalLM"]}
        return {**for_transformers, **self.to_dict()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], source: str = "config") -> ModelConfig:
        """Create a config from JSON or TOML values; ConfigError names the bad key in `source`."""
        if fields.get("cross_attention") == "window":
            raise ConfigError(
                f"{source}: cross_attention must be 'full' or 'index' but is 'window', which was "
                "removed; train and pack with 'index', which is more accurate"
            )
        return super().from_dict(fields, source)

    @classmethod
    def from_json(cls, path: Path) -> ModelConfig:
        """Read a config.json that yocobit wrote."""
        fields = read_json(path)
        for name in (*TRANSFORMERS_KEYS, *LABEL_KEYS):
            fields.pop(name, None)
        return cls.from_dict(fields, str(path))


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
_FEATURES = tuple(_DEFAULTS)[tuple(_DEFAULTS).index("head_size") :]
# The defaults of the features of models whose mixers are all "full" or "window".
SELF_ATTENTION_DEFAULTS: Mapping[str, Any] = {
    name: _DEFAULTS[name] for name in _FEATURES[: _FEATURES.index("head_norm")]
}


def without_default_features(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields, as JSON values, without the features that have their default.

    Earlier versions of yocobit reject unknown fields; they can read models without features.
    """
    return {
        name: value
        for name, value in fields.items()
        if name not in _FEATURES
        or (tuple(value) if isinstance(value, list) else value) != _DEFAULTS[name]
    }


def parse_attention(text: str) -> tuple[CrossAttention, int | None]:
    """Return the kind and the positions of "full" or "index:2048"; ConfigError otherwise."""
    kind, _, positions = text.partition(":")
    if text == "full":
        return "full", None
    is_number = re.fullmatch("[0-9]{1,7}", positions) is not None
    if kind == "index" and is_number and _is_budget(int(positions)):
        return "index", int(positions)
    raise ConfigError(
        f"attention must be full or index:POSITIONS, where POSITIONS is {_POSITIONS_RULE}, "
        f"but is {text!r}"
    )


def _is_budget(positions: int) -> bool:
    return _MIN_POSITIONS <= positions <= _MAX_POSITIONS and positions % BLOCK == 0


def _yoco(n_layers: int, mixer: Mixer = "retention") -> tuple[Mixer, ...]:
    cross: Mixer = "cross"
    return (mixer,) * (n_layers // 2) + (cross,) * (n_layers - n_layers // 2)


PRESETS: dict[str, ModelConfig] = {
    # Trains in seconds; for tests that need a model of any quality.
    "nano": ModelConfig(
        vocab_size=512,
        d_model=64,
        layers=_yoco(4),
        d_ff=128,
        n_heads=4,
        n_kv_heads=2,
        n_self_heads=2,
        n_self_kv_heads=2,
        window=16,
    ),
    # The demo: trains in minutes on two cores.
    "tiny": ModelConfig(
        vocab_size=4096,
        d_model=256,
        layers=_yoco(6),
        d_ff=768,
        n_heads=4,
        n_kv_heads=2,
        n_self_heads=4,
        n_self_kv_heads=4,
    ),
    # 125M parameters, 100M of them in the blocks.
    "small": ModelConfig(
        vocab_size=16384,
        d_model=768,
        layers=_yoco(16),
        d_ff=1792,
        n_heads=12,
        n_kv_heads=4,
        n_self_heads=6,
        n_self_kv_heads=6,
        window=1024,
    ),
    # YOCO-3B as published: 2,829,133,824 parameters without embedding and head.
    "3b": ModelConfig(
        vocab_size=100288,
        d_model=3072,
        layers=_yoco(26),
        d_ff=8192,
        n_heads=24,
        n_kv_heads=8,
        n_self_heads=24,
        n_self_kv_heads=24,
        window=1024,
        weights="dense",
        sub_norm=False,
    ),
}


def preset(name: str) -> ModelConfig:
    """Return a preset by name; ConfigError lists the names."""
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"preset must be one of {', '.join(PRESETS)} but is {shown(name)}")
    return PRESETS[name]
