"""Packed models in the package, for use without training."""

from pathlib import Path

TINY = Path(__file__).parent / "tiny"
