"""What a model is: ModelConfig, stored with every checkpoint and packed model.

Frozen and checked when made, so code that receives one need not check again. Training settings
are in yocobit.training.config.

Letters: C d_model   H n_heads   G n_kv_heads   D head size   F d_ff   V vocab_size   L layers
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from yocobit import _native
from yocobit.errors import ConfigError as ConfigError  # also under the name yocobit.config has had
from yocobit.settings import Count, Settings

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
)

Mixer = Literal["retention", "window", "full", "cross", "gmu", "gate"]
FeedForwardKind = Literal["swiglu", "relu2", "sign"]
WeightKind = Literal["ternary", "ternary_row", "sign", "dense"]
RopeKind = Literal["interleaved", "half", "none"]
CacheType = Literal["float", "int8", "int4"]
CrossAttention = Literal["full", "index"]

BLOCK = _native.BLOCK_POSITIONS  # positions of a block, the unit of sparse attention
FIRST_BLOCKS, LAST_BLOCKS = _native.FIRST_BLOCKS, _native.LAST_BLOCKS  # that all tokens attend to
CANDIDATES_PER_BLOCK = _native.CANDIDATES_PER_BLOCK  # for each other block that the index selects
_FEWEST_POSITIONS, _MOST_POSITIONS = 4 * BLOCK, 1 << 20  # of sparse attention
_BLOCKS_RULE = f"a multiple of {BLOCK}, from {_FEWEST_POSITIONS} to {_MOST_POSITIONS}"

CROSS_DECODER: tuple[Mixer, ...] = ("cross", "gmu")  # mixers.py has a record of each mixer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """The shape and numerics of one decoder-decoder (or plain decoder) language model.

    `layers` names the mixer of each block from input to output. The blocks before the first
    "cross" or "gmu" are the self-decoder; keys and values are computed once from its output and
    every "cross" block reads them (YOCO, arXiv:2405.05254); every "gmu" block reads what the last
    self-decoder block mixed (SambaY, arXiv:2507.06607). Without either it is a plain decoder.
    """

    vocab_size: Annotated[int, Meta(ge=1, le=1 << 20)]  # V; in training the tokenizer's
    # C, the width of the residual stream; a multiple of 8.
    d_model: Annotated[int, Meta(ge=1, le=1 << 16, multiple_of=8)]
    layers: tuple[Mixer, ...]  # the mixer of each block, from input to output
    # F, the width of the feed-forward network; a multiple of 8.
    d_ff: Annotated[int, Meta(ge=1, le=1 << 17, multiple_of=8)]
    n_heads: Count  # H, query heads of "full" and "cross"
    n_kv_heads: Count  # G, KV heads of "full" and "cross"; divides n_heads
    n_self_heads: Count  # heads of "retention", query heads of "window"
    n_self_kv_heads: Count  # KV heads of "window"; divides n_self_heads
    # Positions that "window" sees, including its own.
    window: Annotated[int, Meta(ge=1, le=1 << 24)] = 256
    ffn: FeedForwardKind = "swiglu"  # SwiGLU, squared ReLU, or W_down sign(W_up x)
    weights: WeightKind = "ternary"  # how projections are quantised in training
    sub_norm: bool = True  # SubLN: RMSNorm before quantised projections that have none
    # Position encoding of "retention": pairs, Llama's halves, or none.
    retention_rope: RopeKind = "interleaved"
    window_rope: RopeKind = "interleaved"  # the same for "window"
    full_rope: RopeKind = "interleaved"  # the same for "full"
    cross_rope: RopeKind = "interleaved"  # the same for "cross"
    rope_theta: Annotated[float, Meta(gt=1, le=1e12)] = 10000.0  # base of the rope frequencies
    shared_kv: CacheType = "float"  # training rounds the shared K/V as a cache of this type
    # Which positions "cross" reads: all, or blocks selected by an index.
    cross_attention: CrossAttention = "full"
    cross_positions: int = 2048  # positions that each token reads with an index
    norm_eps: Annotated[float, Meta(ge=1e-20, lt=1)] = 1e-5  # added to the mean square in RMSNorm
    tie_embeddings: bool = False  # the head uses the embedding's weights
    # Multiply embeddings by sqrt(d_model); published BitNet models do not.
    scale_embedding: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 < len(self.layers) <= 1024, "layers", "must name 1 to 1024 mixers")
        for name in ("n_heads", "n_self_heads"):
            heads = getattr(self, name)
            rule = f"must divide d_model = {self.d_model} into heads of a multiple of 8 values"
            self.require(self.d_model % (8 * heads) == 0, name, rule)
            rule = f"must divide d_model = {self.d_model} into heads of at most 1024 values"
            self.require(self.d_model <= 1024 * heads, name, rule)
        for kv, query in (("n_kv_heads", "n_heads"), ("n_self_kv_heads", "n_self_heads")):
            n_query = getattr(self, query)
            self.require(n_query % getattr(self, kv) == 0, kv, f"must divide {query} = {n_query}")
        fits = _are_blocks(self.cross_positions)
        self.require(fits, "cross_positions", f"must be {_BLOCKS_RULE}")
        late = [mixer for mixer in self.layers if mixer in CROSS_DECODER]
        if late:
            rule = f"needs a self-decoder block before '{late[0]}'"
            self.require(self.layers[0] != late[0], "layers", rule)
            rule = "must keep every 'cross' and 'gmu' after the last self-decoder block"
            self.require(list(self.layers[-len(late) :]) == late, "layers", rule)
            rule = "needs a 'cross' with 'gmu', which sees its own position only"
            self.require("cross" in late, "layers", rule)

    @property
    def head_dim(self) -> int:
        """D of full and cross attention."""
        return self.d_model // self.n_heads

    @property
    def self_head_dim(self) -> int:
        """D of retention and sliding-window attention."""
        return self.d_model // self.n_self_heads

    @property
    def n_self_layers(self) -> int:
        """Blocks before the first "cross" or "gmu"."""
        return sum(mixer not in CROSS_DECODER for mixer in self.layers)

    @property
    def has_cross_decoder(self) -> bool:
        return "cross" in self.layers

    def replace(self, **changes: Any) -> ModelConfig:
        """Return a checked copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def has_index(self) -> bool:
        """Whether the cross layers attend to the blocks that an index selects."""
        return self.has_cross_decoder and self.cross_attention == "index"

    @property
    def attention(self) -> str | None:
        """What cross layers attend to, as `attending` takes it; None without cross layers."""
        if not self.has_cross_decoder:
            return None
        kind = self.cross_attention
        return kind if kind == "full" else f"{kind}:{self.cross_positions}"

    def attending(self, to: str) -> ModelConfig:
        """Return a copy whose cross layers attend to "full" or "index:2048".

        The number is cross_positions; ConfigError for other texts and without cross layers.
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
        """Return the fields as JSON values."""
        fields = dataclasses.asdict(self)
        fields["layers"] = list(self.layers)
        return fields

    def to_json(self) -> dict[str, Any]:
        """Return the content of config.json: the fields, and keys for transformers."""
        known_by = {"model_type": MODEL_TYPE, "architectures": ["YocobitForCausalLM"]}
        return {**known_by, **self.to_dict()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], source: str = "config") -> ModelConfig:
        """Make a config of JSON or TOML values; ConfigError names the invalid key in `source`."""
        if fields.get("cross_attention") == "window":
            raise ConfigError(
                f"{source}: cross_attention must be 'full' or 'index' but is 'window', which was "
                "removed; train and pack with 'index', which is more accurate"
            )
        return super().from_dict(fields, source)

    @classmethod
    def from_json(cls, path: Path) -> ModelConfig:
        """Read a config.json that yocobit wrote."""
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: is not valid JSON ({error})") from error
        if not isinstance(fields, dict):
            raise ConfigError(f"{path}: must hold an object but holds {type(fields).__name__}")
        for name in TRANSFORMERS_KEYS:
            fields.pop(name, None)
        return cls.from_dict(fields, str(path))


def parse_attention(text: str) -> tuple[CrossAttention, int | None]:
    """Return the kind and the positions of "full" or "index:2048"; ConfigError for other texts."""
    kind, _, positions = text.partition(":")
    if text == "full":
        return "full", None
    is_number = re.fullmatch("[0-9]{1,7}", positions) is not None
    if kind == "index" and is_number and _are_blocks(int(positions)):
        return "index", int(positions)
    raise ConfigError(
        f"attention must be full or index:POSITIONS, where POSITIONS is {_BLOCKS_RULE}, "
        f"but is {text!r}"
    )


def _are_blocks(positions: int) -> bool:
    return _FEWEST_POSITIONS <= positions <= _MOST_POSITIONS and positions % BLOCK == 0


def _yoco(n_layers: int, mixer: Mixer = "retention") -> tuple[Mixer, ...]:
    cross: Mixer = "cross"
    return (mixer,) * (n_layers // 2) + (cross,) * (n_layers - n_layers // 2)


PRESETS: dict[str, ModelConfig] = {
    # Seconds to train; every test that needs a model and no quality uses it.
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
    # The demo: minutes on two cores.
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
    # About 100M parameters.
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
    if name not in PRESETS:
        raise ConfigError(f"preset must be one of {', '.join(PRESETS)} but is {name!r}")
    return PRESETS[name]
