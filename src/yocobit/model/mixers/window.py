"""Sliding-window attention: a query attends to itself and the W - 1 positions before it."""

from __future__ import annotations

from yocobit.config import ModelConfig
from yocobit.mixers import MIXERS
from yocobit.model.attention import SelfAttention


class WindowAttention(SelfAttention):
    """Causal attention over the last `window` positions, in a cache of constant size."""

    def __init__(self, config: ModelConfig, returns_memory: bool = False) -> None:
        super().__init__(config, MIXERS["window"], config.window, returns_memory)
