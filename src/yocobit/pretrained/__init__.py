"""The packed models in the package, to try it without training."""

from pathlib import Path

TINY = Path(__file__).parent / "tiny"
