"""Train, pack and serve YOCO language models with 1-bit and 1.58-bit weights on CPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from yocobit.version import __version__

if TYPE_CHECKING:
    from yocobit.engine import Engine

__all__ = ["Engine", "__version__"]


def __getattr__(name: str) -> Any:
    """Load the engine on first use: importing yocobit.training does not need it."""
    if name == "Engine":
        from yocobit.engine import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
