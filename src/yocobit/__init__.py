"""Train, pack and serve YOCO language models with 1-bit and 1.58-bit weights on CPUs."""

__version__ = "0.1.0"
