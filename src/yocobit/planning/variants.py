"""Variants to compare a model with: same width, depth, heads and vocabulary."""

from __future__ import annotations

import dataclasses

from yocobit.benchmark.shapes import yoco
from yocobit.config import Mixer, ModelConfig
from yocobit.costs.work import shape_only_model
from yocobit.packing import PackedModel
from yocobit.packing.formats import F16, PROJECTION_FORMATS, TERNARY


@dataclasses.dataclass(frozen=True)
class Variant:
    """A shape-only model and its KV cache type."""

    name: str
    model: PackedModel
    cache: str


def variants(config: ModelConfig, head: str | None) -> tuple[Variant, ...]:
    """Return the variants, from a float16 Transformer to YOCO + BitNet with an int4 cache.

    The YOCO variants keep the layers of a model with a cross-decoder, with full attention;
    otherwise, half their layers are retention and half cross layers. `head` is the head format of
    the ternary variants.
    """
    full: Mixer = "full"
    transformer = config.replace(layers=(full,) * len(config.layers))
    decoder_decoder = config.attending("full") if config.has_cross_decoder else yoco(config)
    stacks = (
        ("Transformer f16", transformer, F16.name, "f16"),
        ("YOCO f16", decoder_decoder, F16.name, "f16"),
        ("BitNet Transformer", transformer, TERNARY.name, "f16"),
        ("YOCO + BitNet", decoder_decoder, TERNARY.name, "int4"),
    )
    return tuple(
        Variant(name, _shape_only(stack, weights, head), cache)
        for name, stack, weights, cache in stacks
    )


def _shape_only(config: ModelConfig, weights: str, head: str | None) -> PackedModel:
    """Return the shape with a weight format; the tables of float weights have the same format."""
    head = head if PROJECTION_FORMATS[weights].is_integer else None
    return shape_only_model(_with_weights(config, weights), weights, head)


def _with_weights(config: ModelConfig, format: str) -> ModelConfig:
    """Return the shape for a weight format; models with quantised weights have SubLN."""
    stored = PROJECTION_FORMATS[format]
    return config.replace(weights=stored.weights, sub_norm=stored.is_integer)
