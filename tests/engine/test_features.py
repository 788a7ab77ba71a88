"""Architecture features of published models: the engine against float64, and its bits.

Letters: T positions   C d_model   H query heads   G KV heads   D head size   V vocab_size
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
from float64_decoder import Float64Decoder
from kernel_families import KERNELS, SLOW
from random_models import relative_error, write

from yocobit import _native
from yocobit.config import ModelConfig
from yocobit.costs.memory import CACHE_FORMATS
from yocobit.engine import Engine
from yocobit.mixers import FEED_FORWARDS
from yocobit.packing import PackedModel
from yocobit.packing.formats import FORMATS, INT8_PER_GROUP, PROJECTION_FORMATS

VOCABULARY = 301
T = 20  # tokens of a test: four windows
LIMIT = 1e-5  # of the largest logit
WIDE = {
    "d_model": 328,
    "d_ff": 520,
    "n_heads": 1,
    "n_kv_heads": 1,
    "n_self_heads": 1,
    "layers": ("full", "window"),
}

# Features of models with full and sliding-window attention, by the fields that they change.
ATTENTION_FEATURES = {
    "none": {},
    "wide heads": {"head_size": 24},
    "narrow heads": {"head_size": 8},
    "heads of 12": {"head_size": 12},
    "heads of 100 with an explicit rope": {
        "head_size": 100,
        "n_heads": 2,
        "full_rope_frequencies": tuple(0.9**i for i in range(50)),
    },
    "attention scale": {"attention_scale": 0.35},
    "norm before rope": {"qk_norm": "before_rope"},
    "norm after rope": {"qk_norm": "after_rope"},
    "bias": {"qkv_bias": True},
    "bias of 12 rows": {"qkv_bias": True, "head_size": 12, "n_kv_heads": 1},
    "partial rope": {
        "full_rope_frequencies": (1.0, 0.31, 0.02),
        "window_rope_frequencies": (0.9, 0.2, 0.13, 0.05, 0.007),
    },
    "rope factor": {"rope_factor": 1.19},
    "rope table with factor": {
        "full_rope_frequencies": tuple(0.5**i for i in range(8)),
        "rope_factor": 0.83,
    },
    "layers without rope": {"nope_layers": (0, 3)},
    "projection norms": {"projection_norms": True, "projection_norm_eps": 1e-3},
    "projection norms without SubLN": {"projection_norms": True, "sub_norm": False},
}
EXPERTS = {"ffn": "moe", "n_experts": 6, "n_active_experts": 2}
# Features of all models.
FEATURES = {
    "head norm": {"head_norm": True},
    "post norms": {"post_norms": True},
    "embedding scale": {"embedding_scale": 3.7},
    "no embedding scale": {"scale_embedding": False},
    "residual scale": {"residual_scale": 0.37},
    "logit scale": {"logit_scale": 0.21},
    "post norms with residual scale": {"post_norms": True, "residual_scale": 1.7},
    "head norm of a tied head": {"head_norm": True, "tie_embeddings": True},
    "geglu": {"ffn": "geglu"},
    "SwiGLU limit": {"swiglu_limit": 0.7},
    "experts": EXPERTS | {"swiglu_limit": 0.7, "residual_scale": 0.37},
    "experts with post norms": EXPERTS | {"sub_norm": False, "post_norms": True},
}
ALL = {
    "head_size": 24,
    "attention_scale": 0.35,
    "qk_norm": "before_rope",
    "qkv_bias": True,
    "full_rope_frequencies": (1.0, 0.31, 0.02),
    "rope_factor": 1.19,
    "nope_layers": (1,),
    "projection_norms": True,
    "head_norm": True,
    "post_norms": True,
    "embedding_scale": 3.7,
    "residual_scale": 0.37,
    "logit_scale": 0.21,
    "ffn": "geglu",
}
CASES = (
    ATTENTION_FEATURES | FEATURES | {"all": ALL, "all, after rope": ALL | {"qk_norm": "after_rope"}}
)
STACKS = {
    "decoder-decoder": ("window", "retention", "cross", "gmu"),
    "gate": ("window", "gate", "cross", "gmu"),
}


def config_of(changes: dict, **more) -> ModelConfig:
    """Return a small model with features: D is 16 unless they say otherwise."""
    fields = {
        "vocab_size": VOCABULARY,
        "d_model": 64,
        "layers": ("full", "window", "full", "window"),
        "d_ff": 72,
        "n_heads": 4,
        "n_kv_heads": 2,
        "n_self_heads": 4,
        "n_self_kv_heads": 1,
        "window": 5,
        "full_rope": "half",
        "window_rope": "half",
    }
    return ModelConfig(**fields | changes | more)


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    """A cached function from a configuration and formats to a packed model."""

    @functools.cache
    def make(config, projections="ternary", embedding="int8", head="int8") -> PackedModel:
        return write(tmp_path_factory.mktemp("model"), config, projections, embedding, head)

    return make


def check_against_float64(model: PackedModel, limit: float = LIMIT) -> None:
    expected = Float64Decoder.of_packed(model)
    tokens = expected.tokens_without_ties(T)
    engine = Engine(model, threads=2, kernels=None)

    logits = engine.session(T, "f32").feed_all(tokens)
    hidden = engine.session(T, "f32").hidden_states(tokens)

    assert relative_error(logits, expected.logits(tokens)) < limit
    assert relative_error(hidden, expected.hidden_states(tokens)) < limit


@pytest.mark.parametrize("weights", ["ternary", "dense"])
@pytest.mark.parametrize("name", CASES)
def test_features_equal_the_float64_statement(model_of, name, weights):
    projections = "f32" if weights == "dense" else weights

    check_against_float64(model_of(config_of(CASES[name]), projections, "f32", "f32"))


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("stack", STACKS)
def test_features_of_all_models_equal_the_float64_statement(model_of, name, stack):
    # Heads do not depend on mixers, and tokens without ties in an int8 head are found slowly.
    head = "f32" if stack == "gate" and "tie_embeddings" not in FEATURES[name] else "int8"
    config = config_of(FEATURES[name], layers=STACKS[stack])

    check_against_float64(model_of(config, "ternary", "int8", head))


@pytest.mark.parametrize("ffn", FEED_FORWARDS)
@pytest.mark.parametrize("projections", PROJECTION_FORMATS)
def test_projections_of_every_format_equal_the_float64_statement(model_of, ffn, projections):
    changes = EXPERTS if ffn == "moe" else {"ffn": ffn, "projection_norms": True}
    config = config_of(changes, layers=("full",))

    check_against_float64(model_of(config, projections, "f32", "f32"))


@pytest.mark.parametrize("embedding", FORMATS)
def test_embeddings_of_every_format_equal_the_float64_statement(model_of, embedding):
    """Rows of three ternary blocks, two sign blocks and five int4 blocks, the last partial."""
    config = config_of({}, d_model=264, n_heads=3, n_kv_heads=1, n_self_heads=3, layers=("full",))

    check_against_float64(model_of(config, "f16", embedding, "ternary"))


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("head", FORMATS)
def test_heads_of_every_format_equal_the_float64_statement(model_of, head, is_tied):
    config = config_of({"head_norm": True, "tie_embeddings": is_tied}, layers=("full",))

    check_against_float64(model_of(config, "ternary", head if is_tied else "f32", head))


WEIGHTS_ONLY = [name for name, format in FORMATS.items() if format.activations is INT8_PER_GROUP]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("format", WEIGHTS_ONLY)
def test_groups_of_wide_matrices_equal_the_float64_statement(model_of, format, exact):
    """Inputs of 328 and 520 columns: several groups, the last of them partial.

    With int16, float32 and float64 round some activations differently.
    """
    config = config_of({"exact_activations": exact}, **WIDE)

    check_against_float64(model_of(config, format, format, format), 5e-4 if exact else LIMIT)


# ---- bits ----


def bits(array) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint32)


BITS_CASES = {name: config_of(changes) for name, changes in CASES.items()} | {
    f"{stack}, all": config_of(
        {
            field: value
            for changes in FEATURES.values()
            for field, value in changes.items()
            if field not in ("scale_embedding", "sub_norm")
        },
        layers=layers,
    )
    for stack, layers in STACKS.items()
}
FORMATS_OF_TABLES = [("int8", "int8"), ("ternary", "sign"), ("int4", "ternary_row"), ("f16", "f32")]
LONG = 70  # tokens: more than two tiles of a GEMM


def tokens_of(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(VOCABULARY, size=n).astype(np.int32)


@pytest.mark.parametrize("name", BITS_CASES)
def test_logits_have_the_same_bits_for_any_kernels_threads_and_chunks(model_of, name):
    model = model_of(BITS_CASES[name])
    tokens = tokens_of(LONG)
    expected = bits(Engine(model, threads=1, kernels="scalar").logits(tokens, "f32"))

    for kernels in KERNELS:
        np.testing.assert_array_equal(
            bits(Engine(model, 1, kernels).logits(tokens, "f32")), expected
        )
    for threads, chunk in ((2, LONG), (3, 33), (1, 1)):
        session = Engine(model, threads, kernels=None).session(LONG, "f32")
        for begin in range(0, LONG, chunk):
            logits = session.feed(tokens[begin : begin + chunk])
            last = min(begin + chunk, LONG) - 1
            np.testing.assert_array_equal(bits(logits), expected[last])


@pytest.mark.parametrize(("embedding", "head"), FORMATS_OF_TABLES)
def test_low_bit_tables_have_the_same_bits_for_any_kernels_threads_and_chunks(
    model_of, embedding, head
):
    model = model_of(config_of(ALL), "ternary", embedding, head)
    tokens = tokens_of(LONG)
    expected = bits(Engine(model, threads=1, kernels="scalar").logits(tokens, "f32"))

    for kernels in KERNELS:
        engine = Engine(model, threads=2, kernels=kernels)
        np.testing.assert_array_equal(bits(engine.logits(tokens, "f32")), expected)
        session = Engine(model, threads=1, kernels=kernels).session(LONG, "f32")
        for t in range(LONG):
            np.testing.assert_array_equal(bits(session.step(tokens[t])), expected[t])


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("format", ["ternary_g64", "sign_g128", "odd_g128", "ternary_row_a16"])
def test_weights_only_formats_have_the_same_bits_for_any_kernels_threads_and_chunks(
    model_of, format, exact
):
    model = model_of(config_of({"exact_activations": exact}, **WIDE), format, format, format)
    tokens = tokens_of(LONG)
    expected = bits(Engine(model, threads=1, kernels="scalar").logits(tokens, "f32"))

    for kernels in KERNELS:
        # A slow family with one of them: the others do not depend on kernels.
        settings = ((2, LONG), (3, 33), (1, 1)) if kernels not in SLOW else ((3, 33),)
        for threads, chunk in settings:
            session = Engine(model, threads, kernels).session(LONG, "f32")
            for begin in range(0, LONG, chunk):
                logits = session.feed(tokens[begin : begin + chunk])
                last = min(begin + chunk, LONG) - 1
                np.testing.assert_array_equal(bits(logits), expected[last])


@pytest.mark.parametrize("cache", ["f32", "int4"])
@pytest.mark.parametrize("name", BITS_CASES)
def test_logits_have_the_same_bits_for_any_batch_composition_and_after_a_restore(
    model_of, name, cache
):
    engine = Engine(model_of(BITS_CASES[name]), threads=2, kernels=None)
    tokens = tokens_of(LONG)
    expected = bits(engine.logits(tokens, cache=cache))
    sessions = [engine.session(LONG, cache) for _ in range(9)]
    for i, session in enumerate(sessions):
        session.feed(tokens[: 1 + 7 * i])
    saved, restored = sessions[5], engine.session(LONG, cache)
    positions = saved.copy_positions(0, saved.position)
    restored.restore(tokens[: saved.position], saved.copy_state(), [positions])
    sessions.append(restored)

    for _ in range(3):
        logits = engine.step(sessions, [tokens[s.position] for s in sessions])
        for session, row in zip(sessions, logits, strict=True):
            np.testing.assert_array_equal(bits(row), expected[session.position - 1])


@pytest.mark.parametrize("cache", ["f32", "f16", "int8", "int4"])
def test_heads_of_12_values_are_cached_with_padding_that_is_not_seen(model_of, cache):
    engine = Engine(model_of(config_of({"head_size": 12}), "f32", "f32", "f32"), 1, None)
    session = engine.session(64, cache)
    session.feed(tokens_of(LONG)[:40])

    keys, values = session.keys_values(0, 0, 40)

    assert keys.shape == values.shape == (2, 40, 12)
    assert (keys != 0).any(axis=1).all() and (values != 0).any(axis=1).all()
    row_bytes = {"f32": 64, "f16": 32, "int8": 16 + 4, "int4": 8 + 4}[cache]  # of 16 values
    assert session.memory().full_per_token == 2 * 2 * 2 * row_bytes  # 2 layers, 2 heads, K and V
    assert CACHE_FORMATS[cache].row_bytes(12) == row_bytes


# ---- what the engine reads ----


def native_engine(model: PackedModel, config: dict) -> _native.Engine:
    tensors = {n: (t.dtype, list(t.shape), t.begin, t.end) for n, t in model.tensors.items()}
    formats = {name: stored.format.name for name, stored in model.parameters.items()}
    return _native.Engine(str(model.file), config, tensors, formats, "", 1)


def native_logits(engine: _native.Engine) -> np.ndarray:
    out = np.empty((T, VOCABULARY), np.float32)
    engine.feed(_native.Session(engine, T, "f32"), tokens_of(T), "all", out)
    return out


@pytest.mark.parametrize("name", ["none", "all"])
def test_fields_that_have_their_default_may_be_left_out(model_of, name):
    model = model_of(config_of(CASES[name]))
    short, whole = model.config.to_dict(), dataclasses.asdict(model.config)
    assert ("head_size" in short) == (name == "all") and "head_size" in whole

    found = [native_logits(native_engine(model, fields)) for fields in (short, whole)]

    np.testing.assert_array_equal(bits(found[0]), bits(found[1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_size": 0}, "heads must be a multiple of 4 values each, at most 1024"),
        ({"head_size": -8}, "heads must be a multiple of 4"),
        ({"head_size": 18}, "heads must be a multiple of 4"),
        ({"head_size": 1032}, "heads must be a multiple of 4"),
        ({"head_size": 12, "n_heads": 1, "n_kv_heads": 1}, "heads must be a multiple of 8 values"),
        ({"head_size": 12, "qk_norm": "after_rope"}, "heads must be a multiple of 8 values each"),
        ({"head_size": 1024, "n_heads": 128}, "heads must be d_model values together, or at most"),
        ({"d_model": 72}, "heads must be"),
        ({"head_size": 24}, r"tensor 'layers.0.mixer.q_proj.weight' must be"),
        ({"layers": ["full", "retention"], "qkv_bias": True}, "features of self-attention must be"),
        ({"layers": ["full", "cross"], "head_size": 24}, "features of self-attention must be"),
        ({"layers": ["full", "gate"], "nope_layers": [0]}, "features of self-attention must be"),
        ({"nope_layers": [4]}, "nope_layers must be indices of layers"),
        ({"nope_layers": [-1]}, "nope_layers must be indices of layers"),
        ({"full_rope_frequencies": [0.5] * 9}, "rope frequencies must be .* one for each pair"),
        ({"window_rope_frequencies": [0.5] * 9}, "rope frequencies must be .* one for each pair"),
        ({"full_rope_frequencies": [0.0]}, "rope frequencies must be finite and positive"),
        ({"full_rope_frequencies": [float("nan")]}, "rope frequencies must be finite"),
        (
            {"full_rope_frequencies": [0.5], "full_rope": "interleaved"},
            "rope frequencies must be left out unless the rope is 'half'",
        ),
        ({"rope_factor": 0.0}, "rope_factor must be finite and positive"),
        ({"rope_factor": 1e300}, "rope_factor must be finite and positive"),
        ({"attention_scale": 1e300}, "attention_scale must be finite and positive"),
        ({"residual_scale": float("nan")}, "residual_scale must be finite and positive"),
        ({"embedding_scale": -1.0}, "embedding_scale must be finite and positive"),
        ({"logit_scale": 1e-300}, "logit_scale must be finite and positive"),
        ({"projection_norm_eps": 0.0}, r"projection_norm_eps must be in \(0, 1\]"),
        ({"qk_norm": "yes"}, "qk_norm is not known to the engine: 'yes'"),
        ({"qk_norm": "before_rope"}, "tensor 'layers.0.mixer.q_norm.weight' is missing"),
        ({"qkv_bias": True}, "tensor 'layers.0.mixer.q_proj.bias' is missing"),
        ({"projection_norms": True}, "tensor 'layers.0.mixer.q_proj.norm.weight' is missing"),
        ({"post_norms": True}, "tensor 'layers.0.mixer_post_norm.weight' is missing"),
        ({"head_norm": True}, "tensor 'head.norm.weight' is missing"),
    ],
    ids=str,
)
def test_a_configuration_that_does_not_fit_is_refused(model_of, changes, message):
    model = model_of(config_of({}))

    with pytest.raises(ValueError, match=message):
        native_engine(model, model.config.to_dict() | changes)


@pytest.mark.parametrize(
    "name",
    [
        "layers.1.mixer.q_proj.bias",
        "layers.0.mixer.k_norm.weight",
        "layers.2.ffn.down_proj.norm.weight",
        "layers.3.ffn_post_norm.weight",
        "head.norm.weight",
    ],
)
def test_a_vector_of_a_feature_must_be_finite_and_have_its_size(tmp_path, name):
    model = write(tmp_path, config_of(ALL), "ternary", "int8", "int8")
    info = model.tensors[name]
    content = bytearray(model.file.read_bytes())
    content[info.begin : info.begin + 4] = np.float32(np.nan).tobytes()
    model.file.write_bytes(content)

    problems = native_engine(model, model.config.to_dict()).find_problems()
    assert [problem for problem in problems if f"'{name}' must be finite" in problem] == problems
    assert len(problems) == 1

    short = dataclasses.replace(info, shape=(info.shape[0] - 8,), end=info.end - 32)
    with pytest.raises(ValueError, match=f"tensor '{name}' must be"):
        native_engine(
            dataclasses.replace(model, tensors=model.tensors | {name: short}),
            model.config.to_dict(),
        )
