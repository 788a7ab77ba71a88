"""JSON objects on standard output."""

from __future__ import annotations

import json
import math
from typing import Any


def print_json(value: Any, indent: int | None = None) -> None:
    """Print JSON values as one object; null for numbers that JSON lacks."""
    print(json.dumps(_finite(value), indent=indent, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
