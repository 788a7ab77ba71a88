"""Typed access to the metadata of a GGUF file; keys that are never read are refused."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from yocobit.config import ConfigError
from yocobit.errors import shown
from yocobit.importers.gguf.container import GGUFFile, Value

_MISSING: Any = object()


class Metadata:
    """The keys of a file that start with `prefix` and a dot."""

    def __init__(self, file: GGUFFile, prefix: str) -> None:
        self.file = file
        self.prefix = prefix
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return f"{self.prefix}.{key}" in self.file.metadata

    def count(self, key: str, default: int = _MISSING, least: int = 0, most: int = 1 << 31) -> int:
        """Return an integer; of an array, one per layer, the value that all layers share."""
        value = self._shared(key, default)
        if type(value) is not int or not least <= value <= most:
            rule = f"must be an integer, at least {least} and at most {most},"
            raise self.error(key, rule, value)
        return value

    def number(self, key: str, default: float = _MISSING) -> float:
        """Return a finite number; of an array, one per layer, the value that all layers share."""
        value = self._shared(key, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self.error(key, "must be a finite number", value)
        return float(value)

    def text(self, key: str, default: str = _MISSING) -> str:
        """Return a string."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.error(key, "must be a string", value)
        return value

    def flags(self, key: str, n: int) -> list[bool]:
        """Return an array of `n` bools."""
        value = self._get(key)
        if not isinstance(value, np.ndarray) or value.dtype != np.bool_ or len(value) != n:
            raise self.error(key, f"must have one bool for each of {n} layers", value)
        return [bool(flag) for flag in value]

    def is_array(self, key: str) -> bool:
        """Whether a key has an array."""
        return isinstance(self.file.metadata.get(f"{self.prefix}.{key}"), np.ndarray)

    def require(self, key: str, supported: Value) -> None:
        """Raise ConfigError unless a key is absent or has the only supported value."""
        value = self._get(key, supported)
        if isinstance(value, np.ndarray | list) or value != supported:
            raise self.error(key, f"must be {supported}", value)

    def refuse_others(self, ignored: Iterable[str]) -> None:
        """Raise ConfigError for a key that was not read and is not in `ignored`."""
        start = f"{self.prefix}."
        known = self._read | {start + key for key in ignored}
        unknown = [key for key in self.file.metadata if key.startswith(start) and key not in known]
        if unknown:
            value = self.file.metadata[unknown[0]]
            raise self.file.error(
                f"key {shown(unknown[0])} (value {shown(value, 80)}) is not supported; it may "
                "change what the model computes"
            )

    def error(self, key: str, rule: str, value: Value) -> ConfigError:
        """Return an error about the value of a key."""
        return self.file.error(f"{self.prefix}.{key} {rule} but is {shown(value, 80)}")

    def _shared(self, key: str, default: Value) -> Value:
        """Return a value; of an array whose items are equal, the item."""
        value = self._get(key, default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            return value[0].item()
        return value

    def _get(self, key: str, default: Value = _MISSING) -> Value:
        name = f"{self.prefix}.{key}"
        self._read.add(name)
        value = self.file.metadata.get(name, default)
        if value is _MISSING:
            raise self.file.error(f"key '{name}' is missing")
        return value
