"""Rules for configurations: another program computes the same model only if all of them hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from yocobit.config import MAX_ROPE_THETA, ModelConfig
from yocobit.errors import ConfigError, shown
from yocobit.packing.layout import Floats

_CONTEXT = 4096  # tokens, of a model without trained_context: other formats need a length


def context_length(config: ModelConfig, context: int | None) -> int:
    """Return the context length to write: `context`, or what the model was trained with."""
    return context or config.trained_context or _CONTEXT


class Rule(NamedTuple):
    """A rule for a field or property of ModelConfig."""

    name: str
    holds: Callable[[ModelConfig], bool]
    text: str


def equals(name: str, *values: object) -> Rule:
    """Return the rule that a field has one of these values."""
    text = f"must be {' or '.join(shown(value) for value in values)}"
    return Rule(name, lambda config: getattr(config, name) in values, text)


# Other programs have neither keys nor code for other values.
SCALARS = (
    equals("embedding_factor", 1.0),
    equals("residual_scale", 1.0),
    equals("logit_scale", 1.0),
)
ATTENTION_SCALE = Rule(
    "attention_scale",
    lambda config: (
        config.attention_scale is None
        or math.isclose(config.attention_scale, config.head_dim**-0.5, rel_tol=1e-7)
    ),
    "must be 1 / sqrt(head size)",
)
# Windows next to full attention.
WINDOWS = (
    Rule("layers", lambda config: {"window"} <= set(config.layers) <= {"window", "full"},
         "must be 'window' and 'full'"),
    Rule("n_self_heads", lambda config: (config.n_self_heads, config.n_self_kv_heads) ==
         (config.n_heads, config.n_kv_heads), "and n_self_kv_heads must be those of 'full'"),
)  # fmt: skip
BLOCKS = (equals("post_norms", False), equals("head_norm", False), equals("swiglu_limit", None))
# A Llama-like Transformer, apart from SCALARS.
LLAMA_LIKE = (
    Rule("layers", lambda config: set(config.layers) == {"full"}, "must all be 'full'"),
    equals("full_rope", "half"),
    equals("nope_layers", ()),
    Rule(
        "full_rope_frequencies",
        lambda config: len(config.full_rope_frequencies) in (0, config.head_dim // 2),
        "must rotate the whole head",
    ),
    ATTENTION_SCALE,
    *BLOCKS,
)
PLAIN = (*LLAMA_LIKE, *SCALARS)


def check(config: ModelConfig, path: Path, target: str, rules: Iterable[Rule]) -> None:
    """Raise ConfigError for the first rule that the model in `path` breaks in program `target`."""
    for rule in rules:
        if not rule.holds(config):
            value = getattr(config, rule.name)
            raise ConfigError(
                f"{path}: {rule.name} {rule.text} in {target} but is {shown(value, 80)}"
            )


def with_rope_in_halves(config: ModelConfig, path: Path) -> ModelConfig:
    """Return the configuration that computes the same with the rows of Q and K in halves.

    The frequencies of interleaved RoPE are theta ** -(i / (n - 1)) for n pairs: those of the base
    theta ** (n / (n - 1)). A model without interleaved RoPE, with other layers than "full" and
    "window", or with two head sizes, is returned as it is. ConfigError, naming `path`, if that base
    is too large.
    """
    ropes = {f"{mixer}_rope": getattr(config, f"{mixer}_rope", None) for mixer in config.layers}
    if not (ropes.keys() <= {"full_rope", "window_rope"} and "interleaved" in ropes.values()):
        return config
    if "half" in ropes.values():
        return config
    if "window" in config.layers and config.head_dim != config.self_head_dim:
        return config
    n = config.head_dim // 2
    power = n / max(n - 1, 1)  # a single pair has the frequency 1 with any base
    base = config.rope_theta**power
    if base > MAX_ROPE_THETA:
        most = MAX_ROPE_THETA ** (1 / power)
        raise ConfigError(
            f"{path}: rope_theta of interleaved RoPE with head size {config.head_dim} must be at "
            f"most {most:.4g} for an export but is {config.rope_theta:.4g}; use the model without "
            "an export, or train one with a lower rope_theta"
        )
    halves = {name: "half" for name, kind in ropes.items() if kind == "interleaved"}
    return config.replace(rope_theta=base, **halves)


def frequency_divisors(config: ModelConfig) -> Floats:
    """Return the divisors that turn the frequencies of rope_theta into those of the model."""
    n = config.head_dim // 2
    base = config.rope_theta ** -(np.arange(n) / n)
    own = np.array(config.full_rope_frequencies or base)
    divisors: Floats = (base / own).astype(np.float32)
    return divisors
