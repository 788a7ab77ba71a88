"""Costs of models with the architecture features of published models.

The model: 2 layers, "window" of 5 positions and "full"; V 512, C 64, F 104, 4/2 heads of 24.

Letters: C d_model   F d_ff   V vocab_size   D head size
"""

from __future__ import annotations

from typing import get_args

import pytest
from published_decoders import CASES

from yocobit import Engine
from yocobit.benchmark.random_model import write_random_model
from yocobit.costs import decode_bytes, describe, multiply_adds, session_bytes, weight_bytes
from yocobit.costs.memory import projection_bytes
from yocobit.costs.traffic import mixer_multiply_adds, session_traffic
from yocobit.costs.work import HEAD, WEIGHTS, shape_only_model, work_of
from yocobit.engine.session import CacheType
from yocobit.packing.formats import F16
from yocobit.packing.stored_parameters import stored_parameters

C, F, V, D = 64, 104, 512, 24
Q, KV = 4 * D, 2 * D
ALL = CASES["gemma3"].config.replace(
    projection_norms=True, qkv_bias=True, head_norm=True, sub_norm=True, tie_embeddings=False
)
WEIGHTS_OF_LAYER = C * (Q + 2 * KV) + Q * C + 3 * C * F
# Biases; the norms of Q and K, of 7 projections, SubLN, and of the residual stream.
FLOATS_OF_LAYER = (Q + 2 * KV) + 2 * D + (5 * C + Q + F) + (Q + F) + 4 * C


@pytest.mark.parametrize("n_tokens", [1, 40, 1000])
@pytest.mark.parametrize("cache", get_args(CacheType))
@pytest.mark.parametrize("head_size", [D, 20, None])
def test_session_bytes_equal_the_engines_reservation(head_size, cache, n_tokens, tmp_path):
    frequencies = {"full_rope_frequencies": (), "window_rope_frequencies": ()}
    config = CASES["gemma3"].config.replace(head_size=head_size, qk_norm="none", **frequencies)
    engine = Engine(write_random_model(config, tmp_path / "model"), 1, None)

    assert session_bytes(config, cache, n_tokens) == (
        engine.session(n_tokens, cache).memory().total
    )


@pytest.mark.parametrize(("head", "bytes_of_value"), [("f16", 2), ("f32", 4)])
def test_weight_bytes_count_biases_norms_and_float_heads(head, bytes_of_value):
    model = shape_only_model(ALL, "f16", head)

    floats = 2 * FLOATS_OF_LAYER + 2 * C  # the final norm and that of the head
    matrices = 2 * 2 * WEIGHTS_OF_LAYER
    padding = weight_bytes(model) - (matrices + 4 * floats + bytes_of_value * V * C)
    assert padding == 0
    row = bytes_of_value * C
    each = session_traffic(ALL, "f16", 9, 1) + row
    assert decode_bytes(model, "f16", 9, 1, batch=3) == weight_bytes(model) + 3 * each


def test_a_tied_float_table_counts_once_as_the_head():
    model = shape_only_model(ALL.replace(tie_embeddings=True), "f32", "f16")

    work = work_of(model, "f16", 10, 1)

    assert work.part(HEAD).traffic_bytes == 2 * V * C
    assert not work.part(HEAD).is_integer
    assert work.part(WEIGHTS).n_bytes == 4 * (2 * (WEIGHTS_OF_LAYER + FLOATS_OF_LAYER) + 2 * C)
    assert weight_bytes(model) == work.part(HEAD).n_bytes + work.part(WEIGHTS).n_bytes


def test_a_ternary_head_is_read_in_its_format():
    config = CASES["bitnet"].config
    head = shape_only_model(config, head="ternary")

    # A row of 64 columns is one block of 32 bytes; one float32 scale.
    assert work_of(head, "f16", 10, 1).part(HEAD).traffic_bytes == V * 32 + 4
    assert work_of(head, "f16", 10, 1).part(HEAD).is_integer


def test_bytes_of_projections_are_those_of_each_format():
    formats = {"layers.0.ffn.down_proj.weight": F16}
    config = CASES["bitnet"].config
    parameters = stored_parameters(config, formats=formats)
    model = shape_only_model(config, formats=formats)

    assert model.parameters == parameters
    sizes = projection_bytes(model)
    assert sizes["f16"] == 2 * C * F
    # Blocks of 128 columns, 32 bytes a row.
    assert sizes["ternary"] == 32 * (2 * (Q + 2 * KV + C + 2 * F) + C) + 13 * 4
    assert weight_bytes(model) == weight_bytes(shape_only_model(config)) + (
        2 * C * F - (32 * C + 4)
    )


def test_multiply_adds_count_heads_of_any_size():
    assert multiply_adds(ALL, 1, 1) == 2 * WEIGHTS_OF_LAYER + V * C
    # The window sees 5 positions, the full layer all 10.
    assert mixer_multiply_adds(ALL, 9, 1, 1) == 2 * Q * (5 + 10)
    assert session_traffic(ALL, "f16", 9, 1) == 2 * 2 * KV * (5 + 10)


def test_description_names_the_features(tmp_path):
    config = CASES["yarn"].config
    # Of layers that the model does not have, as some readers write them.
    windows = {"window_rope_frequencies": config.full_rope_frequencies, "window_rope": "half"}
    model = write_random_model(config.replace(**windows), tmp_path / "model")

    (line,) = [line for line in describe(model) if line.startswith("features")]

    assert line == (
        f"features    head_size 24, 12 full_rope_frequencies, "
        f"rope_factor {model.config.rope_factor}"
    )


def test_description_of_a_model_without_features_has_no_such_line(tmp_path):
    config = CASES["yarn"].config.replace(head_size=None, full_rope_frequencies=(), rope_factor=1.0)
    model = write_random_model(config, tmp_path / "model")

    assert not [line for line in describe(model) if line.startswith("features")]
