"""The section [data] of a training run: the text, and its conversion to tokens."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any

from msgspec import Meta

from yocobit.data.windows import BLOCK
from yocobit.errors import ConfigError
from yocobit.settings import Count, Settings

PYTHON_STDLIB = "python-stdlib"  # a source that is located at run time, not a path

_MAX_WEIGHT = 1e9  # keeps the sum of weights finite
_MAX_VOCAB_SIZE = 1 << 20  # of a model


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig(Settings):
    """An item of data.train or data.valid that has settings in addition to its path."""

    path: str  # a file, a directory, a glob, or "python-stdlib"
    weight: float | None = None  # share of the training windows, relative to the other items
    text_field: str = "text"  # field of a .jsonl record, or column of a .parquet file
    by_line: bool = False  # each line of a .txt file is a document

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.path != "", "path", "must not be empty")
        is_name = self.text_field.isprintable() and not {'"', "\\"} & {*self.text_field}
        rule = "must have no quotation mark, backslash or control character"
        self.require(is_name, "text_field", rule)
        is_finite = self.weight is None or 0 < self.weight < math.inf
        self.require(is_finite, "weight", "must be above 0")
        self.require(
            (self.weight or 0) <= _MAX_WEIGHT, "weight", f"must be at most {_MAX_WEIGHT:g}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Settings):
    """[data]: training and validation text, tokenizer and context length."""

    train: tuple[str | SourceConfig, ...]  # paths, or tables as below
    valid: tuple[str | SourceConfig, ...] = ()  # held-out text; instead of valid_every
    # Hold out about one document in this many; instead of valid.
    valid_every: Annotated[int, Meta(ge=2)] | None = None
    exclude: tuple[str, ...] = ()  # globs on paths relative to a directory of `train` or `valid`
    deduplicate: bool = False  # keep the first of documents with the same text
    vocab_size: int | None = None  # of the BPE trained on the text; the preset's if absent
    tokenizer: str | None = None  # a tokenizer.json to use instead of training one
    context: Count = 256  # tokens per window

    def __post_init__(self) -> None:
        for name in ("train", "valid"):
            object.__setattr__(self, name, _with_sources(getattr(self, name), name))
        super().__post_init__()
        self.require(len(self.train) > 0, "train", "must name at least one file or directory")
        weights = [source.weight for source in sources(self.train)]
        if None in weights and any(weight is not None for weight in weights):
            raise ConfigError("train must have a weight in every item or in none")
        if None not in weights and len(weights) > BLOCK:
            raise ConfigError(f"train must have at most {BLOCK} weights but has {len(weights)}")
        if any(source.weight is not None for source in sources(self.valid)):
            raise ConfigError("valid must have no weight: all of it is read")
        self.require(self.tokenizer != "", "tokenizer", "must not be empty")
        if bool(self.valid) == (self.valid_every is not None):
            raise ConfigError("give either valid (files) or valid_every (one document in N)")
        if self.vocab_size is not None:
            rule = "must be at least 257: 256 bytes and the EOS token"
            self.require(self.vocab_size >= 257, "vocab_size", rule)
            rule = f"must be at most {_MAX_VOCAB_SIZE:,}"
            self.require(self.vocab_size <= _MAX_VOCAB_SIZE, "vocab_size", rule)
            if self.tokenizer is not None:
                raise ConfigError("give either vocab_size or tokenizer, not both")


def sources(items: tuple[str | SourceConfig, ...]) -> tuple[SourceConfig, ...]:
    """Return the items of data.train or data.valid as sources."""
    return tuple(SourceConfig(path=item) if isinstance(item, str) else item for item in items)


def _with_sources(items: Any, name: str) -> Any:
    """Convert the tables among items to sources; validation rejects wrong types later."""
    if not isinstance(items, tuple | list):
        return items
    return tuple(
        SourceConfig.from_dict(item, f"{name}[{i}]") if isinstance(item, dict) else item
        for i, item in enumerate(items)
    )
