"""RoPE scaling: frequencies and factors equal those of transformers."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.hunyuan_v1_dense.configuration_hunyuan_v1_dense import (
    HunYuanDenseV1Config,
)
from transformers.models.hunyuan_v1_dense.modeling_hunyuan_v1_dense import (
    HunYuanDenseV1RotaryEmbedding,
)

from yocobit.config import ConfigError
from yocobit.importers.huggingface.rope import rope_of

THETA = 5e5
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
LONG = {
    "rope_type": "longrope",
    "short_factor": np.linspace(1, 2, 32).tolist(),
    "long_factor": np.linspace(1, 40, 32).tolist(),
    "original_max_position_embeddings": 4096,
}


def theirs(parameters, head_size, max_positions):
    config = LlamaConfig(
        hidden_size=4 * head_size,
        num_attention_heads=4,
        head_dim=head_size,
        max_position_embeddings=max_positions,
        rope_parameters={"rope_theta": THETA, **parameters},
    )
    is_long = parameters["rope_type"] == "longrope"
    seq_len = max_positions if is_long else None
    frequencies, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu", seq_len)
    return frequencies.double().numpy(), factor


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "linear", "factor": 4.0, "partial_rotary_factor": 0.5},
        LLAMA3,
        {**LLAMA3, "partial_rotary_factor": 0.25},
        YARN,
        {**YARN, "beta_fast": 16.0, "beta_slow": 2.0},
        {**YARN, "truncate": False},
        {**YARN, "attention_factor": 0.7},
        {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3},
        {**YARN, "original_max_position_embeddings": 16},
        LONG,
        {**LONG, "factor": 16.0},
        {**LONG, "attention_factor": 1.19},
        {**LONG, "original_max_position_embeddings": 32768},
    ],
)
def test_frequencies_and_factor_are_those_of_transformers(parameters):
    rope = rope_of({"rope_theta": THETA, **parameters}, 64, 32768, "rope")

    frequencies, factor = theirs(parameters, 64, 32768)
    np.testing.assert_allclose(rope.frequencies, frequencies, rtol=1e-6)
    assert rope.factor == pytest.approx(factor, rel=1e-12)
    assert rope.theta == THETA


def test_default_rope_has_the_frequencies_of_theta():
    assert rope_of({"rope_theta": THETA}, 64, None, "rope") == (THETA, (), 1.0)
    assert rope_of({"rope_type": None, "type": "default"}, 64, None, "rope").frequencies == ()

    partial = rope_of({"rope_theta": THETA, "partial_rotary_factor": 0.5}, 64, None, "rope")

    np.testing.assert_allclose(partial.frequencies, THETA ** (-2 * np.arange(16) / 32))


def test_dynamic_with_alpha_has_the_frequencies_of_hunyuan():
    parameters = {"rope_type": "dynamic", "alpha": 1000.0, "factor": 1.0, "mscale_all_dim": 0.0}
    config = HunYuanDenseV1Config(head_dim=64, rope_parameters={"rope_theta": 1e4, **parameters})
    rotary = HunYuanDenseV1RotaryEmbedding(config)

    rope = rope_of({"rope_theta": 1e4, **parameters}, 64, 32768, "rope")

    frequencies = rope.theta ** (-2 * np.arange(32) / 64)
    assert (rope.frequencies, rope.factor) == ((), rotary.attention_scaling)
    np.testing.assert_allclose(frequencies, rotary.inv_freq.double().numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "rope_type must not be 'dynamic'"),
        ({"rope_type": "dynamic", "alpha": 0.5}, "alpha must be a number from 1 to 1e\\+06 but is"),
        ({"rope_type": "dynamic", "alpha": "x"}, "alpha must be a number from 1 to 1e\\+06 but is"),
        ({"type": "mrope"}, "rope_type must be one of 'default', .* but is 'mrope'"),
        ({"mrope_section": [1, 2]}, "unknown key 'mrope_section'"),
        ({"rope_type": "linear"}, "key 'factor' is missing"),
        ({"rope_type": "linear", "factor": 0.5}, "factor must be between 1 and 1000000.0 but"),
        ({"factor": 2.0}, "factor must be left out with rope_type 'default' but is 2.0"),
        ({**LLAMA3, "low_freq_factor": None}, "key 'low_freq_factor' is missing"),
        ({**LLAMA3, "high_freq_factor": 1.0}, "low_freq_factor must be below high_freq_factor = 1"),
        ({**YARN, "original_max_position_embeddings": None}, "key 'original_max_position"),
        ({**LONG, "short_factor": [1.0]}, "short_factor must have 32 values but has 1"),
        (
            {"partial_rotary_factor": 0.02},
            "partial_rotary_factor must give an even number of rotated values but",
        ),
        ({"rope_theta": "x"}, "rope_theta must be a number but is 'x'"),
        ({"rope_theta": 1e400}, "rope_theta must be"),
    ],
)
def test_invalid_parameters_are_one_line(parameters, message):
    with pytest.raises(ConfigError, match=f"config.json: {message}"):
        rope_of(parameters, 64, None, "config.json")
