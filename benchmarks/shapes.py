"""The shapes that engines are compared on; weights are random, as speed does not depend on them."""

from __future__ import annotations

from yocobit.config import ModelConfig


def transformer(
    d_model: int, n_layers: int, n_heads: int, n_kv_heads: int, d_ff: int, vocab_size: int
) -> ModelConfig:
    """A plain Transformer as llama.cpp runs it: the only stack that both engines have."""
    return ModelConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        layers=("full",) * n_layers,
        d_ff=d_ff,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        n_self_heads=n_heads,
        n_self_kv_heads=n_heads,
        full_rope="half",
        rope_theta=500000.0,
    )


SHAPES = {
    "2b4t": transformer(2560, 30, 20, 5, 6912, 128256),  # BitNet b1.58 2B4T (arXiv:2504.12285)
    "150m": transformer(768, 24, 12, 12, 2048, 32000),
}
