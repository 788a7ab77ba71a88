"""Train, pack and serve YOCO language models with 1-bit and 1.58-bit weights on CPUs."""

from yocobit.engine import Engine

__all__ = ["Engine", "__version__"]
__version__ = "0.1.0"
