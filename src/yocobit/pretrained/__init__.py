"""Models that come with the package, so that it says something before anything is trained."""

from pathlib import Path

TINY = Path(__file__).parent / "tiny"
