"""Named shapes for speed measurements."""

from __future__ import annotations

import difflib

from yocobit.config import PRESETS, SELF_ATTENTION_DEFAULTS, Mixer, ModelConfig
from yocobit.errors import UserError, shown


def transformer(
    d_model: int, n_layers: int, n_heads: int, n_kv_heads: int, d_ff: int, vocab_size: int
) -> ModelConfig:
    """Return a plain Transformer, the architecture that llama.cpp supports too."""
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
    """Return the YOCO stack of the same width and depth: retention and cross layers.

    It has no features of self-attention. Numbers of heads are lowered until d_model is divisible by
    8 times the number.
    """
    half = len(config.layers) // 2
    heads = {}
    for query, kv in (("n_heads", "n_kv_heads"), ("n_self_heads", "n_self_kv_heads")):
        H, G = getattr(config, query), getattr(config, kv)
        heads[query] = next(h for h in range(H, 0, -1) if config.d_model % (8 * h) == 0)
        heads[kv] = next(g for g in range(G, 0, -1) if heads[query] % g == 0)
    return config.replace(
        **SELF_ATTENTION_DEFAULTS,
        **heads,
        layers=("retention",) * half + ("cross",) * (len(config.layers) - half),
    )


def gmu(config: ModelConfig) -> ModelConfig:
    """Return the stack with a gated memory unit in place of every second cross layer (SambaY)."""
    first = config.layers.index("cross")
    layers = tuple(
        "gmu" if mixer == "cross" and (i - first) % 2 else mixer
        for i, mixer in enumerate(config.layers)
    )
    return config.replace(layers=layers)


def _bonsai_8b() -> ModelConfig:
    """Return the shape of Bonsai-8B, that of Qwen3-8B."""
    config = transformer(4096, 36, 32, 8, 12288, 151936)
    return config.replace(qk_norm="before_rope", sub_norm=False, rope_theta=1e6)


def _maple() -> ModelConfig:
    """Return the shape of Maple 20B-A1B, with 8 of 256 experts.

    Three layers with a window and RoPE on half of each head alternate with one layer of full
    attention without RoPE.
    """
    layers: tuple[Mixer, ...] = ("window", "window", "window", "full") * 6
    return transformer(2048, 24, 16, 4, 512, 151936).replace(
        layers=layers,
        n_self_kv_heads=4,
        window=512,
        window_rope="half",
        window_rope_frequencies=tuple(1e6 ** -(i / 32) for i in range(32)),
        nope_layers=tuple(i for i, mixer in enumerate(layers) if mixer == "full"),
        qk_norm="before_rope",
        sub_norm=False,
        ffn="moe",
        n_experts=256,
        n_active_experts=8,
        swiglu_limit=7.0,
    )


SHAPES = {
    "2b4t": transformer(2560, 30, 20, 5, 6912, 128256),  # BitNet b1.58 2B4T (arXiv:2504.12285)
    "falcon3-3b": transformer(3072, 22, 12, 4, 9216, 131072),  # Falcon3-3B-1.58bit
    "llama3-8b": transformer(4096, 32, 32, 8, 14336, 128256),  # Llama3-8B-1.58
    "150m": transformer(768, 24, 12, 12, 2048, 32000),
    "bonsai-8b": _bonsai_8b(),  # prism-ml; --weights ternary_g128 or sign_g128
    "maple-20b-a1b": _maple(),  # deepgrove; --weights ternary_row_a16
}


def named_shape(name: str) -> ModelConfig:
    """Return a preset or one of SHAPES.

    The suffix "-yoco" turns one of SHAPES into a YOCO stack; "-gmu" replaces every second cross
    layer of a YOCO stack by a gated memory unit.
    """
    stacks = {**PRESETS, **{f"{key}-yoco": yoco(config) for key, config in SHAPES.items()}}
    named = {**SHAPES, **stacks, **{f"{key}-gmu": gmu(config) for key, config in stacks.items()}}
    if name not in named:
        close = difflib.get_close_matches(name, named, n=1)
        raise UserError(
            f"--shape must be one of {', '.join((*SHAPES, *PRESETS))}, or a variant such as "
            f"2b4t-yoco or small-gmu, but is {shown(name)}"
            + (f"; did you mean {close[0]}?" if close else "")
        )
    return named[name]
