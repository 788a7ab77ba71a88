"""The tables of mixers and FFN kinds: complete, and equal to the PyTorch model."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from published_decoders import CASES

from yocobit.config import CROSS_DECODER, FeedForwardKind, Mixer, ModelConfig, preset
from yocobit.mixers import (
    FEED_FORWARDS,
    MIXERS,
    layer_mixers,
    model_parameters,
    parameter_shapes,
)
from yocobit.model import Cache, Decoder
from yocobit.model.feed_forward import ACTIVATIONS
from yocobit.model.mixers import MIXER_MODULES

NANO = preset("nano").replace(n_self_kv_heads=1, window=8)


def test_tables_have_one_record_of_each_kind_that_a_config_may_name():
    assert tuple(MIXERS) == tuple(MIXER_MODULES) == get_args(Mixer)
    assert tuple(FEED_FORWARDS) == tuple(ACTIVATIONS) == get_args(FeedForwardKind)
    assert all(name == spec.name for name, spec in MIXERS.items())
    assert all(name == spec.name for name, spec in FEED_FORWARDS.items())


def test_cross_decoder_is_that_of_the_table():
    assert tuple(name for name, spec in MIXERS.items() if spec.decoder == "cross") == CROSS_DECODER


@pytest.mark.parametrize("ffn", FEED_FORWARDS)
@pytest.mark.parametrize("sub_norm", [True, False])
@pytest.mark.parametrize("mixer", MIXERS)
def test_parameters_are_those_of_the_decoder(mixer: Mixer, sub_norm: bool, ffn: FeedForwardKind):
    experts = {"n_experts": 4, "n_active_experts": 2} if ffn == "moe" else {}
    config = stack_with(mixer).replace(
        sub_norm=sub_norm, ffn=ffn, tie_embeddings=sub_norm, **experts
    )

    shapes = parameter_shapes(config)

    with torch.device("meta"):
        parameters = dict(Decoder(config).named_parameters())
    assert shapes == {name: tuple(p.shape) for name, p in parameters.items()}
    assert list(shapes) == list(parameters)


@pytest.mark.parametrize("name", CASES)
def test_parameters_of_published_models_are_those_of_the_decoder(name):
    config = CASES[name].config.replace(qkv_bias=True)

    shapes = parameter_shapes(config)

    with torch.device("meta"):
        decoder = Decoder(config)
    parameters = {name: tuple(p.shape) for name, p in decoder.named_parameters()}
    assert list(shapes.items()) == list(parameters.items())
    assert decoder.state_dict().keys() - {"head.weight"} == shapes.keys() - {"head.weight"}


@pytest.mark.parametrize("mixer", MIXERS)
def test_roles_follow_the_names_of_parameters(mixer: Mixer):
    for name, parameter in model_parameters(stack_with(mixer)).items():
        stem = name.removesuffix(".weight").split(".")[-1]
        by_name = {"embedding": "embedding", "head": "head", "decay_proj": "float"}
        expected = by_name.get(stem, "projection" if stem.endswith("_proj") else "norm")
        assert parameter.role == expected, name


@pytest.mark.parametrize("mixer", [m for m, spec in MIXERS.items() if spec.decoder == "self"])
def test_state_and_cache_have_the_shapes_in_the_decoder(mixer: Mixer):
    config, spec = NANO.replace(layers=(mixer,)), MIXERS[mixer]
    cache, n_tokens = Cache(), 20

    Decoder(config).prefill(torch.zeros(1, n_tokens, dtype=torch.int64), cache)

    (state,) = cache.layers
    if spec.state_shape is not None:
        assert tuple(state.shape[1:]) == spec.state_shape(config)
    elif spec.kv_cache == "none":
        assert state is None
    else:
        assert spec.heads is not None
        heads = spec.heads(config)
        n_kept = {"per_token": n_tokens, "ring": config.window - 1}[spec.kv_cache]
        assert all(kept.shape == (1, heads.n_kv_heads, n_kept, heads.head_dim) for kept in state)


def test_work_per_token_is_counted_from_states_and_heads():
    config = NANO.replace(layers=("retention", "window", "full", "cross", "gmu"))
    C, D = config.d_model, config.self_head_dim

    specs = layer_mixers(config)

    assert [spec.state_bytes(config) for spec in specs] == [4 * C * D, 0, 0, 0, 0]
    assert [spec.state_multiply_adds(config) for spec in specs] == [2 * C * D, 0, 0, 0, 0]
    assert [spec.attention_multiply_adds(config) for spec in specs] == [0, 2 * C, 2 * C, 2 * C, 0]


def test_rope_is_the_field_of_the_config_that_a_mixer_names():
    config = NANO.replace(retention_rope="none", window_rope="half", cross_rope="none")

    ropes = {name: spec.rope(config) for name, spec in MIXERS.items()}

    assert ropes | {"gmu": "none", "full": "interleaved"} == ropes
    assert (ropes["retention"], ropes["window"], ropes["cross"]) == ("none", "half", "none")


def stack_with(mixer: Mixer) -> ModelConfig:
    """Return a small model that has a layer of the mixer."""
    if MIXERS[mixer].decoder == "self":
        return NANO.replace(layers=("window", mixer, "cross"))
    return NANO.replace(layers=("window", "cross", mixer))
