"""The shapes that speed is measured on; weights are random, as speed does not depend on them."""

from __future__ import annotations

from yocobit.benchmark.plan import BenchmarkError
from yocobit.config import PRESETS, Mixer, ModelConfig


def transformer(
    d_model: int, n_layers: int, n_heads: int, n_kv_heads: int, d_ff: int, vocab_size: int
) -> ModelConfig:
    """A plain Transformer as llama.cpp runs it: the only stack that both engines have."""
    layer: Mixer = "full"
    return ModelConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        layers=(layer,) * n_layers,
        d_ff=d_ff,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        n_self_heads=n_heads,
        n_self_kv_heads=n_heads,
        full_rope="half",
        rope_theta=500000.0,
    )


def yoco(config: ModelConfig) -> ModelConfig:
    """The same width, depth and heads as retention layers and cross layers, half and half."""
    half = len(config.layers) // 2
    return config.replace(layers=("retention",) * half + ("cross",) * (len(config.layers) - half))


def gmu(config: ModelConfig) -> ModelConfig:
    """The same with gated memory units in place of every second cross layer (SambaY)."""
    first = config.layers.index("cross")
    layers = tuple(
        "gmu" if mixer == "cross" and (i - first) % 2 else mixer
        for i, mixer in enumerate(config.layers)
    )
    return config.replace(layers=layers)


SHAPES = {
    "2b4t": transformer(2560, 30, 20, 5, 6912, 128256),  # BitNet b1.58 2B4T (arXiv:2504.12285)
    "150m": transformer(768, 24, 12, 12, 2048, 32000),
}


def named_shape(name: str) -> ModelConfig:
    """Return a preset, one of SHAPES, or one of these with "-yoco" appended; "-gmu" after a YOCO
    stack makes every second cross layer a gated memory unit."""
    stacks = {**PRESETS, **{f"{key}-yoco": yoco(config) for key, config in SHAPES.items()}}
    named = {**SHAPES, **stacks, **{f"{key}-gmu": gmu(config) for key, config in stacks.items()}}
    if name not in named:
        raise BenchmarkError(f"--shape must be one of {', '.join(named)} but is {name!r}")
    return named[name]
