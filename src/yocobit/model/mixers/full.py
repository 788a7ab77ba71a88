"""Full attention with a KV cache per layer: the baseline."""

from __future__ import annotations

from yocobit.config import ModelConfig
from yocobit.mixers import MIXERS
from yocobit.model.attention import SelfAttention


class FullAttention(SelfAttention):
    """Causal attention over all positions."""

    def __init__(self, config: ModelConfig, returns_memory: bool = False) -> None:
        super().__init__(config, MIXERS["full"], None, returns_memory)
