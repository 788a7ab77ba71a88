"""Cells of the generated tables."""

from __future__ import annotations

import re


def cell(text: str) -> str:
    """Return text for a cell of a table."""
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))


def number(value: float) -> str:
    """Return a bound as text."""
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
