"""RoPE scaling of published models: frequencies and factor from `rope_parameters`.

Pure functions, for both readers. All arithmetic is in float64.

Letters: D head size   d rotated values of a head   theta base of the frequencies
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from msgspec import Meta

from yocobit.config import MAX_ROPE_THETA
from yocobit.errors import ConfigError, shown
from yocobit.settings import Count, Positive, PositiveFraction, Settings

_Factor = Annotated[float, Meta(ge=1, le=1e6)]
_Ratio = Annotated[float, Meta(ge=1e-6, le=1e6)]
_MAX_ALPHA = 1e6


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeParameters(Settings):
    """`rope_parameters` or `rope_scaling` of a config.json, as transformers reads them."""

    rope_type: Literal["default", "linear", "llama3", "yarn", "longrope"] = "default"
    rope_theta: Annotated[float, Meta(gt=1, le=MAX_ROPE_THETA)] = 10000.0
    partial_rotary_factor: PositiveFraction = 1.0  # d / D
    factor: _Factor | None = None  # of the context length
    original_max_position_embeddings: Count | None = None
    attention_factor: _Ratio | None = None  # of cosines and sines
    low_freq_factor: _Ratio | None = None  # llama3
    high_freq_factor: _Ratio | None = None
    beta_fast: _Ratio | None = None  # yarn
    beta_slow: _Ratio | None = None
    mscale: _Ratio | None = None
    mscale_all_dim: _Ratio | None = None
    truncate: bool | None = None
    short_factor: tuple[Positive, ...] | None = None  # longrope: per frequency
    long_factor: tuple[Positive, ...] | None = None


class Rope(NamedTuple):
    """The RoPE of a model: the fields of ModelConfig."""

    theta: float
    frequencies: tuple[float, ...]  # (): those of theta, over the whole head
    factor: float


_KEYS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        *("factor", "original_max_position_embeddings", "attention_factor", "beta_fast"),
        *("beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
    "longrope": (
        *("factor", "original_max_position_embeddings", "attention_factor"),
        *("short_factor", "long_factor"),
    ),
}
SCALED_CONTEXTS = tuple(
    kind for kind, keys in _KEYS.items() if "original_max_position_embeddings" in keys
)
_COMMON_KEYS = ("rope_type", "rope_theta", "partial_rotary_factor")


def rope_of(
    parameters: Mapping[str, Any], head_size: int, max_positions: int | None, subject: str
) -> Rope:
    """Return the RoPE of `parameters`; ConfigError names `subject` and the invalid key.

    `head_size` is D. `max_positions` is the context length of the model: the default of
    original_max_position_embeddings. It also selects the long or short factors of "longrope".
    """
    values = {name: value for name, value in parameters.items() if value is not None}
    kind = values.setdefault("rope_type", values.pop("type", "default"))
    values.pop("type", None)
    if kind == "dynamic":
        values = _with_alpha(values, head_size, subject)
    rope = RopeParameters.from_dict(values, subject)
    for name in values:
        if name not in (*_COMMON_KEYS, *_KEYS[rope.rope_type]):
            raise ConfigError(
                f"{subject}: {name} must be left out with rope_type '{rope.rope_type}' but is "
                f"{shown(values[name])}"
            )
    n_rotated = int(head_size * rope.partial_rotary_factor)  # d
    if n_rotated < 2 or n_rotated % 2:
        raise ConfigError(
            f"{subject}: partial_rotary_factor must give an even number of rotated values but "
            f"gives {n_rotated} of {head_size}"
        )
    plain = [rope.rope_theta ** (-2 * i / n_rotated) for i in range(n_rotated // 2)]
    original = rope.original_max_position_embeddings or max_positions
    frequencies, factor = plain, 1.0
    if rope.rope_type == "linear":
        divisor = _required(rope.factor, "factor", subject)
        frequencies = [frequency / divisor for frequency in plain]
    elif rope.rope_type == "llama3":
        frequencies = _llama3(rope, plain, _original(original, subject), subject)
    elif rope.rope_type == "yarn":
        frequencies, factor = _yarn(rope, plain, _original(original, subject), max_positions)
    elif rope.rope_type == "longrope":
        frequencies, factor = _longrope(
            rope, plain, _original(original, subject), max_positions, subject
        )
    is_plain = frequencies is plain and n_rotated == head_size
    return Rope(rope.rope_theta, () if is_plain else tuple(frequencies), factor)


def _with_alpha(values: Mapping[str, Any], head_size: int, subject: str) -> dict[str, Any]:
    """Return the fixed parameters that "dynamic" with `alpha` stands for (HunYuan).

    theta * alpha ** (D / (D - 2)) is the base of the frequencies; other keys have no effect.
    """
    if (alpha := values.get("alpha")) is None:
        raise ConfigError(
            f"{subject}: rope_type must not be 'dynamic' without alpha: its frequencies depend on "
            "the length of the text; set a fixed type and factor, such as 'yarn'"
        )
    if not isinstance(alpha, int | float) or not 1 <= alpha <= _MAX_ALPHA:
        raise ConfigError(
            f"{subject}: alpha must be a number from 1 to {_MAX_ALPHA:g} but is {shown(alpha)}"
        )
    kept = {key: values[key] for key in ("rope_theta", "partial_rotary_factor") if key in values}
    theta = RopeParameters.from_dict(kept, subject).rope_theta
    return {**kept, "rope_theta": theta * alpha ** (head_size / max(head_size - 2, 1))}


def _llama3(rope: RopeParameters, plain: list[float], original: int, subject: str) -> list[float]:
    """Divide low frequencies by the factor, keep high ones, blend between (Llama 3.1)."""
    factor = _required(rope.factor, "factor", subject)
    low = _required(rope.low_freq_factor, "low_freq_factor", subject)
    high = _required(rope.high_freq_factor, "high_freq_factor", subject)
    if low >= high:
        raise ConfigError(
            f"{subject}: low_freq_factor must be below high_freq_factor = {high:g} but is {low:g}"
        )

    def scaled(frequency: float) -> float:
        turns = original * frequency / (2 * math.pi)  # over the original context
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        return (1 - kept) * frequency / factor + kept * frequency

    return [scaled(frequency) for frequency in plain]


def _yarn(
    rope: RopeParameters, plain: list[float], original: int, max_positions: int | None
) -> tuple[list[float], float]:
    """Interpolate low frequencies, keep high ones, blend between (arXiv:2309.00071)."""
    factor = rope.factor or max((max_positions or original) / original, 1.0)
    if rope.attention_factor is not None:
        attention = rope.attention_factor
    elif rope.mscale is not None and rope.mscale_all_dim is not None:
        attention = _mscale(factor, rope.mscale) / _mscale(factor, rope.mscale_all_dim)
    else:
        attention = _mscale(factor, 1.0)
    n_rotated, log_theta = 2 * len(plain), math.log(rope.rope_theta)

    def pair_with(turns: float) -> float:
        return n_rotated * math.log(original / (turns * 2 * math.pi)) / (2 * log_theta)

    first, last = pair_with(rope.beta_fast or 32.0), pair_with(rope.beta_slow or 1.0)
    if rope.truncate is not False:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, n_rotated - 1)
    width = last - first if last != first else 0.001  # as transformers

    def scaled(pair: int, frequency: float) -> float:
        interpolated = min(max((pair - first) / width, 0.0), 1.0)
        return frequency / factor * interpolated + frequency * (1 - interpolated)

    return [scaled(pair, frequency) for pair, frequency in enumerate(plain)], attention


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope(
    rope: RopeParameters,
    plain: list[float],
    original: int,
    max_positions: int | None,
    subject: str,
) -> tuple[list[float], float]:
    """Divide each frequency by its own factor (arXiv:2402.13753).

    The long factors apply if the model's context is longer than the original one: per model, as in
    vLLM, not per text.
    """
    positions = max_positions or original
    name = "long_factor" if positions > original else "short_factor"
    factors = getattr(rope, name) or ()
    if len(factors) != len(plain):
        raise ConfigError(f"{subject}: {name} must have {len(plain)} values but has {len(factors)}")
    ratio = rope.factor or positions / original
    attention = rope.attention_factor or 1.0
    if rope.attention_factor is None and ratio > 1 and original > 1:
        attention = math.sqrt(1 + math.log(ratio) / math.log(original))
    return [frequency / each for frequency, each in zip(plain, factors, strict=True)], attention


def _required(value: float | None, name: str, subject: str) -> float:
    if value is None:
        raise ConfigError(f"{subject}: key '{name}' is missing")
    return value


def _original(value: int | None, subject: str) -> int:
    if value is None:
        raise ConfigError(f"{subject}: key 'original_max_position_embeddings' is missing")
    return value
