"""Mixtures of experts: the engine against float64, its bits, and hostile routers.

Letters: T positions   N batch tokens   C d_model   E n_experts   F d_ff   V vocab_size
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from float64_decoder import Float64Decoder
from kernel_families import KERNELS, SLOW
from random_models import relative_error, write

from yocobit import _native
from yocobit.config import ModelConfig
from yocobit.engine import Engine
from yocobit.mixers import FEED_FORWARDS
from yocobit.packing import PackedModel
from yocobit.packing.formats import PROJECTION_FORMATS

V = 301
T = 280  # tokens: more than one batch
LARGEST = np.float32(3e38)  # times 2 is infinite

# E, k and what they change. Of a wide model, inputs have several groups of columns.
SHAPES = {
    "one of one": {"n_experts": 1, "n_active_experts": 1},
    "one of five": {"n_experts": 5, "n_active_experts": 1},
    "all": {"n_experts": 4, "n_active_experts": 4},
    "three of twelve": {"n_experts": 12, "n_active_experts": 3, "d_ff": 8},
    "nine of 70": {"n_experts": 70, "n_active_experts": 9, "d_ff": 24, "sub_norm": False},
    "wide": {
        "n_experts": 6,
        "n_active_experts": 2,
        "d_model": 328,
        "d_ff": 264,
        "n_heads": 1,
        "layers": ("full",),
    },
}
# The logits of all experts are equal: all tokens are those of the first.
EQUAL = {"n_experts": 5, "n_active_experts": 2}


def config_of(changes: dict) -> ModelConfig:
    fields = {
        "vocab_size": V,
        "d_model": 64,
        "layers": ("full", "full"),
        "d_ff": 40,
        "n_heads": 4,
        "n_kv_heads": 1,
        "n_self_heads": 1,
        "n_self_kv_heads": 1,
        "ffn": "moe",
        "swiglu_limit": 1.0,
        "weights": "ternary_row_a16",
    }
    return ModelConfig(**fields | changes)


def routers(config: ModelConfig, values: np.ndarray | float) -> dict[str, np.ndarray]:
    shape = config.n_experts, config.d_model
    router = np.broadcast_to(np.float32(values), shape)
    return {f"layers.{i}.ffn.router.weight": router for i in range(len(config.layers))}


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    """A cached function from a name of SHAPES, or "equal", and a format to a packed model."""

    @functools.cache
    def make(name: str, projections: str = "ternary_row_a16") -> PackedModel:
        directory = tmp_path_factory.mktemp("model")
        if name == "equal":
            config = config_of(EQUAL)
            return write(directory, config, projections, "f32", "f32", routers(config, 0.0))
        return write(directory, config_of(SHAPES[name]), projections, "f32", "f32")

    return make


def bits(array) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint32)


def tokens_of(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(V, size=n).astype(np.int32)


# ---- against float64 ----


@pytest.mark.parametrize("name", [*SHAPES, "equal"])
def test_experts_equal_the_float64_statement(model_of, name):
    model = model_of(name)
    expected = Float64Decoder.of_packed(model)
    tokens = expected.tokens_without_ties(8)

    logits = Engine(model, threads=2, kernels=None).logits(tokens, "f32")

    assert relative_error(logits, expected.logits(tokens)) < 1e-5


def test_experts_with_equal_logits_are_chosen_in_their_order(tmp_path):
    """Experts 1 and 2, 3 and 4 have equal logits: the third of three is the first of a pair."""
    config = config_of({"n_experts": 6, "n_active_experts": 3, "layers": ("full",)})
    rows = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    rows[2], rows[4] = rows[1], rows[3]
    model = write(tmp_path, config, "f32", "f32", "f32", routers(config, rows))
    expected = Float64Decoder.of_packed(model)
    tokens = expected.tokens_without_ties(8)

    logits = Engine(model, threads=1, kernels=None).logits(tokens, "f32")

    assert relative_error(logits, expected.logits(tokens)) < 1e-5


# ---- bits ----


def check_bits(model: PackedModel) -> None:
    tokens = tokens_of(T)
    expected = bits(Engine(model, threads=1, kernels="scalar").logits(tokens, "f32"))
    for kernels in KERNELS:
        # A slow family with one of them: the others do not depend on kernels.
        settings = ((2, T), (3, 33), (5, 7), (2, 1)) if kernels not in SLOW else ((3, 33),)
        for threads, chunk in settings:
            session = Engine(model, threads, kernels).session(T, "f32")
            for begin in range(0, T, chunk):
                logits = session.feed(tokens[begin : begin + chunk])
                last = min(begin + chunk, T) - 1
                np.testing.assert_array_equal(bits(logits), expected[last])


@pytest.mark.parametrize("name", [*SHAPES, "equal"])
def test_logits_have_the_same_bits_for_any_kernels_threads_and_chunks(model_of, name):
    check_bits(model_of(name))


# One of each kind of scales and activations, and of floats; the kernels of all are in tests/native.
FORMATS = ("ternary", "sign", "ternary_g128", "f16")


@pytest.mark.parametrize(
    "projections",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in FORMATS))
        for name in PROJECTION_FORMATS
    ],
)
def test_experts_of_every_format_have_the_same_bits(model_of, projections):
    check_bits(model_of("one of five", projections))


def test_experts_with_int16_activations_have_the_same_bits(tmp_path):
    config = config_of(SHAPES["wide"] | {"exact_activations": True, "layers": ("full",)})

    check_bits(write(tmp_path, config, "sign_g128", "f32", "f32"))


def test_matrices_of_experts_in_different_formats_have_the_same_bits(tmp_path):
    """The inputs of gate and up are then encoded twice."""
    config = config_of(EQUAL | {"layers": ("full",)})
    formats = {
        "layers.0.ffn.gate_proj.weight": "int8",
        "layers.0.ffn.up_proj.weight": "ternary",
        "layers.0.ffn.down_proj.weight": "f16",
    }

    check_bits(write(tmp_path, config, "sign_g128", "f32", "f32", formats=formats))


@pytest.mark.parametrize("name", [*SHAPES, "equal"])
def test_logits_have_the_same_bits_for_any_batch_composition(model_of, name):
    engine = Engine(model_of(name), threads=2, kernels=None)
    tokens = tokens_of(T)
    expected = bits(engine.logits(tokens, "f32"))
    sessions = [engine.session(T, "f32") for _ in range(40)]
    for i, session in enumerate(sessions):
        session.feed(tokens[: 1 + 3 * i])

    for n in (1, 2, 5, 40):
        logits = engine.step(sessions[:n], [tokens[s.position] for s in sessions[:n]])
        for session, row in zip(sessions, logits, strict=False):
            np.testing.assert_array_equal(bits(row), expected[session.position - 1])


# ---- hostile weights ----


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_router_must_be_finite(tmp_path, value):
    config = config_of(EQUAL)
    model = write(tmp_path, config, "f32", "f32", "f32", routers(config, value))

    problems = Engine(model, threads=1, kernels=None)._native.find_problems()

    assert [problem for problem in problems if "router.weight' must be finite" in problem]
    assert len(problems) == len(config.layers)


def test_logits_of_a_router_that_overflow_choose_the_same_experts_everywhere(tmp_path):
    """Sums of +infinity and -infinity are NaN, which counts as the smallest."""
    config = config_of({"n_experts": 12, "n_active_experts": 3})
    signs = np.random.default_rng(0).choice([-LARGEST, LARGEST, 0], (12, 64), p=[0.1, 0.1, 0.8])
    model = write(tmp_path, config, "ternary", "f32", "f32", routers(config, signs))

    check_bits(model)
    assert np.isfinite(Engine(model, threads=1, kernels=None).logits(tokens_of(T), "f32")).all()


def test_a_router_whose_logits_are_all_nan_chooses_the_first_experts(tmp_path, model_of):
    """Each sum holds +infinity and -infinity in one lane."""
    config = config_of(EQUAL)
    model = write(tmp_path, config, "ternary", "f32", "f32", routers(config, LARGEST))
    models = model, model_of("equal", "ternary")

    found, expected = (Engine(each, 1, None).logits(tokens_of(T), "f32") for each in models)

    np.testing.assert_array_equal(bits(found), bits(expected))


@pytest.mark.parametrize("ffn", ["swiglu", "moe"])
@pytest.mark.parametrize("kernels", _native.supported_kernels())
def test_infinite_hidden_values_are_limited_and_nan_stays_nan(tmp_path, ffn, kernels):
    fields = {"ffn": ffn, "layers": ("full",), "sub_norm": False}
    config = config_of(fields | (EQUAL if ffn == "moe" else {}))
    C, rows = config.d_model, config.d_ff * max(config.n_experts, 1)
    embedding = np.zeros((V, C), np.float32)
    embedding[:, 0] = 1.0  # the only value of the stream
    embedding[1, 1] = 1.0
    weights = np.zeros((rows, C), np.float32)
    weights[:, 0], weights[:, 1] = LARGEST, -LARGEST
    floats = {
        "embedding.weight": embedding,
        "layers.0.mixer_norm.weight": np.zeros(C, np.float32),
        "layers.0.ffn_norm.weight": np.ones(C, np.float32),
        "layers.0.ffn.gate_proj.weight": weights,
        "layers.0.ffn.up_proj.weight": weights,
    }
    model = write(tmp_path, config, "f32", "f32", "f32", floats)

    logits = Engine(model, 1, kernels).logits([0, 1], "f32")

    assert np.isfinite(logits[0]).all() and np.isnan(logits[1]).all()


# ---- memory ----


def test_buffers_hold_the_rows_of_each_active_expert_and_do_not_grow(tmp_path):
    sizes = []
    for k in (2, 3):
        config = config_of({"n_experts": 5, "n_active_experts": k, "sub_norm": False})
        (tmp_path / str(k)).mkdir()
        engine = Engine(write(tmp_path / str(k), config, "sign_g128", "f32", "f32"), 1, None)
        sizes.append(engine.buffer_bytes)
        engine.logits(tokens_of(T), "f32")
        assert engine.buffer_bytes == sizes[-1]

    C, F = config.d_model, config.d_ff
    indices = 3 * 4  # expert, routed row and its token
    inputs = 256 + 2 * 4 * 256 // 32  # codes, scales and sums of C columns rounded up
    assert sizes[1] - sizes[0] == FEED_FORWARDS["moe"].max_batch_tokens * (
        indices + inputs + 4 * (2 * F + C)
    )
