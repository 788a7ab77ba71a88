"""generation_config.json, in Hugging Face's form: the fields that this package reads, checked.

The file can be edited freely, so every field is checked when a model is packed, imported or loaded.
Other fields are kept and have no effect.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from yocobit.errors import ConfigError
from yocobit.reading import read_json
from yocobit.settings import Count, Fraction, Natural, PositiveFraction, Settings

Temperature = Annotated[float, Meta(ge=0, le=100)]
TopK = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
RepetitionPenalty = Annotated[float, Meta(ge=0.01, le=100)]

SAMPLING = ("repetition_penalty", "temperature", "top_k", "top_p", "min_p")


def read_generation_config(path: Path) -> dict[str, Any]:
    """Read a generation_config.json, empty if missing; GenerationConfig checks the fields."""
    try:
        fields = read_json(path, Any)
    except FileNotFoundError:
        return {}
    if not isinstance(fields, dict):
        raise ConfigError(f"{path}: must hold an object but holds {type(fields).__name__}")
    return fields


def without_unknown_tokens(fields: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """Return fields without ids that no token of a model has: defaults of another vocabulary.

    Such a token never occurs, so nothing is lost.
    """
    kept = dict(fields)
    for name in ("bos_token_id", "eos_token_id"):
        value = kept.get(name)
        if isinstance(value, list):
            kept[name] = [token for token in value if not _is_above(token, vocab_size)]
        elif _is_above(value, vocab_size):
            del kept[name]
    return kept


def _is_above(token: Any, vocab_size: int) -> bool:
    return type(token) is int and token >= vocab_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig(Settings):
    """EOS tokens, stop strings and sampling defaults of a model."""

    bos_token_id: Natural | None = None
    eos_token_id: Natural | tuple[Natural, ...] | None = None
    stop_strings: Any = None  # a string or a list of strings
    do_sample: bool | None = None
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: PositiveFraction | None = None
    min_p: Fraction | None = None
    repetition_penalty: RepetitionPenalty | None = None
    max_new_tokens: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        is_valid = isinstance(self.stop_strings, str | list | tuple | None) and all(
            isinstance(text, str) and text for text in self.stops
        )
        self.require(is_valid, "stop_strings", "must be strings")

    @classmethod
    def of(cls, fields: Mapping[str, Any], source: str | Path, vocab_size: int) -> GenerationConfig:
        """Return the configuration of a file's content; ConfigError names `source`."""
        known = {field.name for field in dataclasses.fields(cls)}
        config = cls.from_dict({k: v for k, v in fields.items() if k in known}, str(source))
        named = [("bos_token_id", config.bos_token_id)]
        named += [("eos_token_id", token) for token in config.end_tokens]
        for name, token in named:
            if token is not None and token >= vocab_size:
                raise ConfigError(
                    f"{source}: {name} must be below the model's vocab_size {vocab_size} but is "
                    f"{token}"
                )
        return config

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """End-of-sequence tokens."""
        end = self.eos_token_id
        return frozenset(() if end is None else (end,) if isinstance(end, int) else end)

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings: each ends the model's turn."""
        stops = self.stop_strings or ()
        return (stops,) if isinstance(stops, str) else tuple(stops)

    @property
    def sampling(self) -> dict[str, float | int]:
        """The sampling parameters that are set; greedy if do_sample is false."""
        fields = {name: value for name in SAMPLING if (value := getattr(self, name)) is not None}
        return fields if self.do_sample is not False else {**fields, "temperature": 0.0}
