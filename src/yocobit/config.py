"""What a model is: ModelConfig, stored beside every checkpoint and packed model.

Frozen and checked when made, so code that receives one need not check again. Training settings
live in yocobit.training.config.

Letters: C d_model   H n_heads   G n_kv_heads   D head size   F d_ff   V vocab_size   L layers
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_type_hints

MODEL_TYPE = "yocobit"  # by which transformers knows a config.json
# What config.json may hold besides the fields of ModelConfig, for transformers alone.
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

Mixer = Literal["retention", "window", "full", "cross", "gmu"]
FeedForwardKind = Literal["swiglu", "relu2", "sign"]
WeightKind = Literal["ternary", "sign", "dense"]
RopeKind = Literal["interleaved", "half", "none"]
CacheType = Literal["float", "int8", "int4"]
CrossAttention = Literal["full", "index", "window"]

BLOCK = 32  # positions that are chosen together
FIRST_BLOCKS, LAST_BLOCKS = 1, 2  # of them, that every token attends to
TRIED_BLOCKS = 4  # for each other one that an index chooses
_FEWEST_POSITIONS, _MOST_POSITIONS = 4 * BLOCK, 1 << 20  # of cross attention, unless all
_BLOCKS_RULE = f"a multiple of {BLOCK}, from {_FEWEST_POSITIONS} to {_MOST_POSITIONS}"

CROSS_DECODER: tuple[Mixer, ...] = ("cross", "gmu")  # mixers.py has a record of each mixer


class ConfigError(ValueError):
    """A setting that cannot work: names the setting, the rule, its value and the remedy."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape and numerics of one decoder-decoder (or plain decoder) language model.

    `layers` names the mixer of each block from input to output. The blocks before the first
    "cross" or "gmu" are the self-decoder; keys and values are computed once from its output and
    every "cross" block reads them (YOCO, arXiv:2405.05254); every "gmu" block reads what the last
    self-decoder block mixed (SambaY, arXiv:2507.06607). Neither at all is a plain decoder.
    """

    vocab_size: int
    d_model: int
    layers: tuple[Mixer, ...]
    d_ff: int
    n_heads: int  # query heads of "full" and "cross"
    n_kv_heads: int  # their K/V heads
    n_self_heads: int  # heads of "retention", query heads of "window"
    n_self_kv_heads: int  # K/V heads of "window"
    window: int = 256  # positions that "window" sees, itself included
    ffn: FeedForwardKind = "swiglu"
    weights: WeightKind = "ternary"
    sub_norm: bool = True  # RMSNorm before quantised projections that have none (SubLN)
    retention_rope: RopeKind = "interleaved"
    window_rope: RopeKind = "interleaved"
    full_rope: RopeKind = "interleaved"
    cross_rope: RopeKind = "interleaved"
    rope_theta: float = 10000.0
    shared_kv: CacheType = "float"  # what training rounds the shared K/V to
    cross_attention: CrossAttention = "full"  # of which blocks: all, the best, or first and last
    cross_positions: int = 2048  # that a token attends to, unless all
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    scale_embedding: bool = True  # by sqrt(d_model); published BitNet models do not

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("vocab_size", "d_model", "d_ff", "n_heads", "n_kv_heads", "window"):
            require(getattr(self, name) >= 1, self, name, "must be at least 1")
        for name in ("n_self_heads", "n_self_kv_heads"):
            require(getattr(self, name) >= 1, self, name, "must be at least 1")
        require(self.vocab_size <= 1 << 20, self, "vocab_size", "must be at most 1048576")
        require(self.window <= 1 << 24, self, "window", "must be at most 16777216")
        require(self.d_model <= 1 << 16, self, "d_model", "must be at most 65536")
        require(self.d_ff <= 1 << 17, self, "d_ff", "must be at most 131072")
        require(0 < len(self.layers) <= 1024, self, "layers", "must name 1 to 1024 mixers")
        require(self.d_model % 8 == 0, self, "d_model", "must be a multiple of 8")
        require(self.d_ff % 8 == 0, self, "d_ff", "must be a multiple of 8")
        for name in ("n_heads", "n_self_heads"):
            heads = getattr(self, name)
            rule = f"must divide d_model = {self.d_model} into heads of a multiple of 8 values"
            require(self.d_model % (8 * heads) == 0, self, name, rule)
            rule = f"must divide d_model = {self.d_model} into heads of at most 1024 values"
            require(self.d_model <= 1024 * heads, self, name, rule)
        for kv, query in (("n_kv_heads", "n_heads"), ("n_self_kv_heads", "n_self_heads")):
            n_query = getattr(self, query)
            require(n_query % getattr(self, kv) == 0, self, kv, f"must divide {query} = {n_query}")
        fits = _are_blocks(self.cross_positions)
        require(fits, self, "cross_positions", f"must be {_BLOCKS_RULE}")
        require(1 < self.rope_theta <= 1e12, self, "rope_theta", "must be above 1, at most 1e12")
        require(1e-20 <= self.norm_eps < 1, self, "norm_eps", "must be at least 1e-20 and below 1")
        late = [mixer for mixer in self.layers if mixer in CROSS_DECODER]
        if late:
            rule = f"needs a self-decoder block before '{late[0]}'"
            require(self.layers[0] != late[0], self, "layers", rule)
            rule = "must keep every 'cross' and 'gmu' after the last self-decoder block"
            require(list(self.layers[-len(late) :]) == late, self, "layers", rule)
            rule = "needs a 'cross' beside 'gmu', which sees its own position only"
            require("cross" in late, self, "layers", rule)

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
        """Whether an index chooses what the cross layers attend to."""
        return self.has_cross_decoder and self.cross_attention == "index"

    @property
    def attention(self) -> str | None:
        """What cross layers attend to, as `attending` takes it; None if there are none."""
        if not self.has_cross_decoder:
            return None
        kind = self.cross_attention
        return kind if kind == "full" else f"{kind}:{self.cross_positions}"

    def attending(self, to: str) -> ModelConfig:
        """Return a copy whose cross layers attend to "full", "index:2048" or "window:2048".

        The number is cross_positions; ConfigError for other texts, and if there are no such layers.
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
        """Return the content of config.json: the fields, and by what transformers knows them."""
        known_by = {"model_type": MODEL_TYPE, "architectures": ["YocobitForCausalLM"]}
        return {**known_by, **self.to_dict()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], source: str = "config") -> ModelConfig:
        """Make a config from JSON or TOML values; ConfigError names what is wrong in `source`."""
        config: ModelConfig = from_fields(cls, fields, source)
        return config

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
    """Return the kind and the positions of "full", "index:2048" or "window:2048".

    ConfigError for other texts.
    """
    kind, _, positions = text.partition(":")
    if text == "full":
        return "full", None
    is_number = re.fullmatch("[0-9]{1,7}", positions) is not None
    if kind in ("index", "window") and is_number and _are_blocks(int(positions)):
        return cast(CrossAttention, kind), int(positions)
    raise ConfigError(
        "attention must be full, index:POSITIONS or window:POSITIONS, where POSITIONS is "
        f"{_BLOCKS_RULE}, but is {text!r}"
    )


def _are_blocks(positions: int) -> bool:
    return _FEWEST_POSITIONS <= positions <= _MOST_POSITIONS and positions % BLOCK == 0


def from_fields(cls: type[Any], fields: Mapping[str, Any], source: str) -> Any:
    """Make the config dataclass `cls`; unknown and missing keys are errors that name `source`."""
    known = {field.name: field for field in dataclasses.fields(cls)}
    for name in fields:
        if name not in known:
            raise ConfigError(f"{source}: unknown key '{name}'; known keys: {', '.join(known)}")
    for name, field in known.items():
        optional = (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        )
        if name not in fields and not optional:
            raise ConfigError(f"{source}: key '{name}' is missing")
    values = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def require(holds: bool, config: Any, name: str, rule: str) -> None:
    if not holds:
        raise ConfigError(f"{name} {rule} but is {getattr(config, name)!r}")


def check_types(config: Any) -> None:
    """Check each field of a config dataclass against its annotation.

    Understands int, float, bool, str, Literal, `X | None` and tuple[X, ...]. Integers are accepted
    where floats are asked for.
    """
    for name, kind in get_type_hints(type(config)).items():
        value = _with_floats(getattr(config, name), kind)
        if not _is_of(value, kind):
            raise ConfigError(f"{name} must be {_describe(kind)} but is {value!r}")
        object.__setattr__(config, name, value)


def _with_floats(value: Any, kind: Any) -> Any:
    """Return value with a float for each integer that stands where only a float may."""
    arguments = get_args(kind)
    if type(value) is int and (kind is float or (float in arguments and int not in arguments)):
        return float(value)
    if isinstance(value, tuple) and float in arguments:
        return tuple(_with_floats(item, float) for item in value)
    return value


def _is_of(value: Any, kind: Any) -> bool:
    arguments = get_args(kind)
    if kind in (int, float, bool, str, type(None)):
        return type(value) is kind
    if getattr(kind, "__origin__", None) is Literal:
        return isinstance(value, str) and value in arguments
    if getattr(kind, "__origin__", None) is tuple:
        return isinstance(value, tuple) and all(_is_of(item, arguments[0]) for item in value)
    if arguments:  # X | None
        return any(_is_of(value, argument) for argument in arguments)
    return isinstance(value, kind)


def _describe(kind: Any) -> str:
    arguments = get_args(kind)
    if getattr(kind, "__origin__", None) is Literal:
        return "one of " + ", ".join(repr(argument) for argument in arguments)
    if getattr(kind, "__origin__", None) is tuple:
        return "a list, each item " + _describe(arguments[0])
    if arguments:
        return " or ".join(_describe(argument) for argument in arguments)
    if dataclasses.is_dataclass(kind):
        return "a table"
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
    return words.get(kind, "absent" if kind is type(None) else kind.__name__)


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
    """Return a named shape; ConfigError lists the names there are."""
    if name not in PRESETS:
        raise ConfigError(f"preset must be one of {', '.join(PRESETS)} but is {name!r}")
    return PRESETS[name]
