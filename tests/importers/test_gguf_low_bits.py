"""GGUF models with scales of groups and rows: integers and scales are those of the file."""

from __future__ import annotations

import re

import numpy as np
import pytest
from float64_decoder import Float64Decoder
from gguf_files import BLOCKS, low_bit_block, pack_low_bit
from gguf_models import (
    ACTIVE,
    LAYERS,
    WINDOW,
    WITH_EXPERTS,
    C,
    E,
    F,
    V,
    low_bit,
    tensors,
    ternary,
    write_model,
)

from yocobit import Engine
from yocobit.config import ConfigError
from yocobit.importers import IntegerMatrix, import_model
from yocobit.importers.gguf.architectures import tensor_name
from yocobit.importers.gguf.reader import GGUFCheckpoint
from yocobit.mixers import parameter_shapes
from yocobit.packing.file_format import DTYPES, scale_name

FORMATS = {
    "Q1_0": "sign_g128",
    "Q2_0": "ternary_g64",
    "Q2_0 with 128 weights per scale": "ternary_g128",
    "PQ2_0": "ternary_g128",
    "PTQ1_0": "ternary_g128",
    "STQ1_0": "ternary_g128",
    "TQ2_0": "ternary_g128",
    "Q2_0C": "odd_g128",
}
COLUMNS = {"ternary_g64": 64, "ternary_row_a16": C}  # of a scale; 128 in all others
NAME, UP = "layers.0.ffn.up_proj.weight", "blk.0.ffn_up.weight"
TABLES = ("token_embd", "output")


def read_all(checkpoint):
    shapes = parameter_shapes(checkpoint.config)
    return {name: checkpoint.read(name, shape) for name, shape in shapes.items()}


def unpermuted(rows, head_size=64):
    """Rows of Q or K in the order of halves: the inverse of llama.cpp's converter."""
    heads = rows.reshape(-1, head_size // 2, 2, *rows.shape[1:])
    return heads.swapaxes(1, 2).reshape(rows.shape)


def format_of(kind, shape):
    """The format of a random matrix: a block may be a whole row."""
    return "ternary_row_a16" if shape[-1] == BLOCKS[kind] == 256 else FORMATS[kind]


@pytest.fixture
def one(tmp_path):
    """Write a llama model whose matrices are of a type, one of them with these values."""

    def write(kind, integers, scales, keys=None, architecture="llama"):
        replaced = low_bit(architecture, kind)[2]
        replaced[UP] = kind, pack_low_bit(kind, integers, scales), integers.shape
        return write_model(tmp_path / "m.gguf", architecture, keys, replaced)

    return write


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "Q2_0C"])
@pytest.mark.parametrize(
    "architecture", ["llama", "qwen3", *WITH_EXPERTS, "minicpm", "hunyuan-dense"]
)
def test_integers_and_scales_are_those_of_the_file(tmp_path, architecture, kind):
    integers, scales, replaced = low_bit(architecture, kind, TABLES)
    write_model(tmp_path / "m.gguf", architecture, replace=replaced)

    checkpoint = GGUFCheckpoint(tmp_path / "m.gguf")

    assert checkpoint.config.weights == format_of(kind, (C, C))
    assert checkpoint.source_type == f"GGUF {kind}"
    formats = {name: each.name for name, each in checkpoint.formats.items()}
    n_matrices = 0
    for name, values in read_all(checkpoint).items():
        if not isinstance(values, IntegerMatrix):
            continue
        n_matrices += 1
        format = format_of(kind, values.integers.shape)
        assert formats.get(name, checkpoint.config.weights) == format
        theirs = tensor_name(name, architecture in WITH_EXPERTS)
        expected = integers[theirs].reshape(values.integers.shape)
        repeats = BLOCKS[kind] // COLUMNS.get(format, 128)
        wanted = scales[theirs].reshape(len(expected), -1).repeat(repeats, axis=1)
        wanted = wanted[:, 0] if format == "ternary_row_a16" else wanted
        if architecture in ("llama", "minicpm") and name.split(".")[-2] in ("q_proj", "k_proj"):
            expected, wanted = unpermuted(expected), unpermuted(wanted)
        np.testing.assert_array_equal(values.integers, expected, err_msg=name)
        np.testing.assert_array_equal(values.scale, wanted, err_msg=name)
    assert n_matrices == len(integers) == 2 + 7 * LAYERS


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["Q1_0", "Q2_0", "TQ2_0"])
def test_packed_model_has_the_integers_and_scales_of_the_file(tmp_path, kind, tied):
    tables = TABLES[: 1 if tied else 2]
    integers, scales, replaced = low_bit("qwen3", kind, tables, tied=tied)
    write_model(tmp_path / "m.gguf", "qwen3", replace=replaced, tied=tied)

    packed = import_model(tmp_path / "m.gguf", tmp_path / "model")

    data = np.memmap(packed.file, dtype=np.uint8, mode="r")

    def stored(name):
        tensor = packed.tensors[name]
        return data[tensor.begin : tensor.end].view(DTYPES[tensor.dtype]).reshape(tensor.shape)

    assert ("head.weight" in packed.parameters) == (not tied)
    n_matrices = 0
    for name, (format, shape, _) in packed.parameters.items():
        theirs = tensor_name(name)
        if theirs not in integers:
            continue
        n_matrices += 1
        assert format.name == format_of(kind, shape)
        weights = format.dequantize(stored(name), stored(scale_name(name)), *shape)
        block_scales = scales[theirs].astype(np.float32).repeat(BLOCKS[kind], axis=1)
        np.testing.assert_array_equal(weights, integers[theirs] * block_scales)
    assert n_matrices == len(integers)


@pytest.mark.parametrize(
    ("architecture", "kind", "tables"),
    [
        ("qwen3", "Q1_0", TABLES),
        ("llama", "Q2_0", TABLES),
        ("hunyuan-dense", "Q2_0C", ()),
        ("minicpm", "STQ1_0", TABLES),
        ("maple", "TQ2_0", ()),
    ],
)
def test_logits_equal_the_float64_statement(tmp_path, architecture, kind, tables):
    replaced = low_bit(architecture, kind, tables)[2]
    write_model(tmp_path / "m.gguf", architecture, replace=replaced)

    # The inputs of a head in f32 are not rounded, which leaves fewer ties.
    packed = import_model(tmp_path / "m.gguf", tmp_path / "model", None if tables else "f32")

    statement = Float64Decoder.of_packed(packed)
    tokens = statement.tokens_without_ties(3)
    logits = Engine(packed, threads=1, kernels=None).logits(tokens, "f32")
    expected = statement.logits(tokens)
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["Q2_0", "Q2_0 with 128 weights per scale", "PQ2_0", "TQ2_0"])
def test_code_3_is_the_value_2(tmp_path, kind):
    integers, _, replaced = low_bit("qwen3", kind, has_twos=True)
    write_model(tmp_path / "m.gguf", "qwen3", replace=replaced)

    checkpoint = GGUFCheckpoint(tmp_path / "m.gguf")

    assert checkpoint.config.weights == f"int2_g{min(BLOCKS[kind], 128)}"
    found = checkpoint.read(NAME, (F, C)).integers
    assert found.max() == 2
    np.testing.assert_array_equal(found, integers[UP])


def test_one_matrix_with_code_3_has_a_format_of_its_own(one):
    integers = np.ones((F, C), dtype=np.int8)
    integers[7, 3] = 2
    scales = np.arange(1, F * 2 + 1).reshape(F, 2) / 1024

    checkpoint = GGUFCheckpoint(one("PQ2_0", integers, scales))

    assert checkpoint.config.weights == "ternary_g128"
    assert {name: each.name for name, each in checkpoint.formats.items()} == {NAME: "int2_g128"}
    np.testing.assert_array_equal(checkpoint.read(NAME, (F, C)).integers, integers)


def groups_of_64(scales):
    """A matrix of Q2_0 and its scales of four groups in a row."""
    integers = np.random.default_rng(0).integers(-1, 2, (F, C)).astype(np.int8)
    return integers, np.tile(np.float32(scales), (F, 1)) * np.arange(1, F + 1)[:, None] / 1024


@pytest.mark.parametrize(
    ("scales", "format", "read"),
    [
        ((1, 1, 2, 2), "ternary_g128", (1, 2)),
        ((1, 2, 2, 1), "ternary_g64", (1, 2, 2, 1)),
        ((1, 1, 0, 2), "ternary_g128", (1, 2)),  # the group of zeros has no scale of its own
        ((1, 1, 0, 0), "ternary_row_a16", None),
        ((1, 1, 1, 1), "ternary_row_a16", None),
    ],
)
def test_groups_of_64_with_equal_scales_fold(one, scales, format, read):
    integers, scales = groups_of_64(scales)

    checkpoint = GGUFCheckpoint(one("Q2_0", integers, scales))

    formats = {name: each.name for name, each in checkpoint.formats.items()}
    assert formats.get(NAME, checkpoint.config.weights) == format
    matrix = checkpoint.read(NAME, (F, C))
    rows = np.arange(1, F + 1) / 1024
    expected = rows if read is None else np.array(read) * rows[:, None]
    np.testing.assert_array_equal(matrix.scale, expected.astype(np.float32))
    columns = matrix.scale[:, None] if read is None else matrix.scale.repeat(C // len(read), axis=1)
    weights = integers * scales.astype(np.float32).repeat(64, axis=1)
    np.testing.assert_array_equal(matrix.integers * columns, weights)


def test_last_group_of_64_without_a_neighbour_folds(tmp_path):
    kind, width = "Q2_0", 3 * 64
    replaced = low_bit("llama", kind)[2]
    integers = np.random.default_rng(0).integers(-1, 2, (C, width)).astype(np.int8)
    scales = np.tile(np.float16([0.5, 0.5, 0.25]), (C, 1))
    for name, floats in tensors("llama").items():
        part = name.split(".")[-2]
        if part == "ffn_down":
            replaced[name] = kind, pack_low_bit(kind, integers, scales), (C, width)
        elif part in ("ffn_gate", "ffn_up"):
            replaced[name] = floats[:width]
    keys = {"feed_forward_length": width}
    path = write_model(tmp_path / "m.gguf", "llama", keys, replaced)

    checkpoint = GGUFCheckpoint(path)

    name = "layers.0.ffn.down_proj.weight"
    assert checkpoint.formats[name].name == "ternary_g128"
    matrix = checkpoint.read(name, (C, width))
    np.testing.assert_array_equal(matrix.scale, scales[:, ::2])
    np.testing.assert_array_equal(matrix.integers, integers)


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
@pytest.mark.parametrize("architecture", ["llama", "maple"])
def test_equal_scales_of_a_row_are_a_scale_of_the_row(tmp_path, architecture, kind):
    """As deepgrove's Maple and TriLM have; also one scale of the whole matrix."""
    import gguf

    rng = np.random.default_rng(0)
    replaced, trits, rows = {}, {}, {}
    for name, floats in tensors(architecture).items():
        if floats.ndim < 2 or "gate_inp" in name or name.split(".")[0] != "blk":
            continue
        trits[name] = rng.integers(-1, 2, floats.shape).astype(np.int8)
        rows[name] = rng.uniform(0.1, 1, floats.shape[:-1]).astype(np.float16)
        if "ffn_up" in name:
            rows[name][:] = rows[name].flat[0]
            trits[name][..., 0, :256] = 0  # a block without a scale
        weights = trits[name] * rows[name].astype(np.float32)[..., None]
        data = gguf.quantize(weights, gguf.GGMLQuantizationType[kind])
        replaced[name] = kind, data, floats.shape
    path = write_model(tmp_path / "m.gguf", architecture, replace=replaced)

    checkpoint = GGUFCheckpoint(path)

    assert checkpoint.config.weights == "ternary_row_a16"
    assert checkpoint.formats == {}
    name = "layers.1.ffn.down_proj.weight"
    theirs = tensor_name(name, architecture == "maple")
    matrix = checkpoint.read(name, parameter_shapes(checkpoint.config)[name])
    np.testing.assert_array_equal(matrix.integers, trits[theirs].reshape(-1, F))
    np.testing.assert_array_equal(matrix.scale, rows[theirs].reshape(-1))
    shape = parameter_shapes(checkpoint.config)[NAME]
    matrix = checkpoint.read(NAME, shape)
    theirs = tensor_name(NAME, architecture == "maple")
    weights = trits[theirs] * rows[theirs].astype(np.float32)[..., None]
    np.testing.assert_array_equal(matrix.integers * matrix.scale[:, None], weights.reshape(shape))


def test_row_of_zeros_has_a_positive_scale(one):
    integers = np.zeros((F, C), dtype=np.int8)
    integers[1:] = 1
    scales = (integers[:, :1] * 0.5).astype(np.float16)

    matrix = GGUFCheckpoint(one("TQ2_0", integers, scales)).read(NAME, (F, C))

    np.testing.assert_array_equal(matrix.integers, integers)
    np.testing.assert_array_equal(matrix.scale, np.r_[1, np.full(F - 1, 0.5)])


def test_weights_of_a_group_with_scale_0_are_0(one):
    integers = np.ones((F, C), dtype=np.int8)
    scales = np.arange(F * 2).reshape(F, 2) / 1024

    matrix = GGUFCheckpoint(one("PQ2_0", integers, scales)).read(NAME, (F, C))

    assert not matrix.integers[0, :128].any() and matrix.integers[0, 128:].all()
    np.testing.assert_array_equal(matrix.scale, scales)


def test_int8_head_and_float_projections_are_kept(tmp_path):
    replaced = low_bit("qwen3", "Q1_0")[2]
    replaced["blk.1.ffn_up.weight"] = tensors("qwen3")["blk.1.ffn_up.weight"].astype(np.float16)
    path = write_model(tmp_path / "m.gguf", "qwen3", replace=replaced)

    packed = import_model(path, tmp_path / "model")

    formats = {name: stored.format.name for name, stored in packed.parameters.items()}
    assert formats["embedding.weight"] == formats["head.weight"] == "int8"
    assert formats["layers.1.ffn.up_proj.weight"] == "f16"
    assert formats[NAME] == packed.config.weights == "sign_g128"


def test_factor_of_a_matrix_multiplies_its_scales_without_rounding(tmp_path):
    for factor in (2, 3.3):
        _, scales, replaced = low_bit("llama", "Q1_0")
        replaced["blk.0.ffn_up.scale"] = np.array([factor], dtype=np.float32)
        path = write_model(tmp_path / "m.gguf", "llama", replace=replaced)
        if factor == 2:
            matrix = GGUFCheckpoint(path).read(NAME, (F, C))
            np.testing.assert_array_equal(matrix.scale, 2 * scales[UP].astype(np.float32))
            continue
        with pytest.raises(ConfigError, match=f"'{NAME}' must have scales that are exact in float"):
            import_model(path, tmp_path / "model")


@pytest.mark.parametrize("kind", ["Q1_0", "Q2_0", "PTQ1_0", "TQ2_0"])
@pytest.mark.parametrize(("scale", "shown"), [(-0.5, "-0.5"), (np.inf, "inf"), (np.nan, "nan")])
def test_scale_that_is_negative_or_not_finite_is_refused(one, kind, scale, shown):
    integers = np.ones((F, C), dtype=np.int8)
    scales = np.ones((F, C // BLOCKS[kind]), dtype=np.float16)
    scales[-1, -1] = scale
    path = one(kind, integers, scales)

    with pytest.raises(ConfigError) as error:
        GGUFCheckpoint(path)

    assert str(error.value) == (
        f"{path}: tensor '{UP}' must have finite scales of at least 0 but has {shown}; choose "
        "another file of the model"
    )


def test_models_with_quantised_activations_keep_one_scale(tmp_path):
    """The same file with our key, as before."""
    replaced = ternary("llama", "TQ2_0")[2]
    for keys, weights in (({}, "ternary_row_a16"), (A8, "ternary")):
        path = write_model(tmp_path / "m.gguf", "llama", keys, replaced)

        checkpoint = GGUFCheckpoint(path)

        assert checkpoint.config.weights == weights
        assert checkpoint.read(NAME, (F, C)).scale.shape == ((1,) if keys else (F,))


A8 = {"yocobit.activations": "int8_per_token"}


@pytest.mark.parametrize("kind", ["TQ2_0", "Q2_0C"])
def test_integers_that_are_not_trits_are_refused_with_quantised_activations(tmp_path, kind):
    integers = np.ones((C, F), dtype=np.int8)
    integers[0, :256] = 2 if kind == "TQ2_0" else 3
    replaced = ternary("llama", "TQ2_0")[2]
    scales = np.ones((C, F // BLOCKS[kind]), dtype=np.float16)
    name = "blk.0.ffn_down.weight"
    replaced[name] = kind, pack_low_bit(kind, integers, scales), (C, F)
    path = write_model(tmp_path / "m.gguf", "llama", A8, replaced)

    with pytest.raises(ConfigError, match=r"must have trits, .* but 256 \(0.20%\) of its integers"):
        GGUFCheckpoint(path).read("layers.0.ffn.down_proj.weight", (C, F))


def test_odd_integers_of_blocks_of_512(tmp_path):
    integers, scales, replaced = low_bit("hunyuan-dense", "Q2_0C")
    assert replaced.keys() == {f"blk.{i}.ffn_down.weight" for i in range(LAYERS)}
    path = write_model(tmp_path / "m.gguf", "hunyuan-dense", replace=replaced)

    checkpoint = GGUFCheckpoint(path)

    assert checkpoint.config.weights == "odd_g128"
    matrix = checkpoint.read("layers.0.ffn.down_proj.weight", (C, F))
    name = "blk.0.ffn_down.weight"
    np.testing.assert_array_equal(matrix.integers, integers[name])
    np.testing.assert_array_equal(matrix.scale, scales[name].repeat(4, axis=1))
    assert low_bit_block("Q2_0C", [-3] * 512, 1)[2:] == bytes(128)


def test_maple_is_a_mixture_of_experts_with_windows(tmp_path):
    checkpoint = GGUFCheckpoint(write_model(tmp_path / "m.gguf", "maple"))

    config = checkpoint.config
    assert (config.ffn, config.n_experts, config.n_active_experts) == ("moe", E, ACTIVE)
    assert (config.d_ff, config.swiglu_limit, config.qk_norm) == (F, 0.25, "before_rope")
    assert (config.layers, config.window) == (("window", "full"), WINDOW)
    assert (config.window_rope, config.full_rope) == ("half", "none")
    np.testing.assert_allclose(
        config.window_rope_frequencies, 500000.0 ** (-np.arange(16) / 16), rtol=1e-12
    )
    assert config.full_rope_frequencies == () and not config.tie_embeddings
    expected = tensors("maple")
    parameters = read_all(checkpoint)
    for name, theirs in (
        ("layers.1.ffn.router.weight", "blk.1.ffn_gate_inp.weight"),
        ("layers.1.ffn.gate_proj.weight", "blk.1.ffn_gate_exps.weight"),
        ("layers.1.ffn.down_proj.weight", "blk.1.ffn_down_exps.weight"),
    ):
        found = parameters[name]
        np.testing.assert_array_equal(found, expected[theirs].reshape(found.shape))


def test_experts_of_qwen3moe_have_rope_in_every_layer(tmp_path):
    config = GGUFCheckpoint(write_model(tmp_path / "m.gguf", "qwen3moe")).config

    assert (config.ffn, config.n_experts, config.n_active_experts) == ("moe", E, ACTIVE)
    assert (config.layers, config.full_rope) == (("full", "full"), "half")
    assert config.swiglu_limit is None and config.qk_norm == "before_rope"


@pytest.mark.parametrize(
    ("keys", "limit"),
    [({"swiglu_clamp_exp": None}, None), ({"swiglu_clamp_exp": [0.0, 0.0]}, None), ({}, 0.25)],
)
def test_limit_of_experts_is_optional(tmp_path, keys, limit):
    path = write_model(tmp_path / "m.gguf", "maple", keys)

    assert GGUFCheckpoint(path).config.swiglu_limit == limit


def test_rope_of_windows_has_its_own_base(tmp_path):
    path = write_model(tmp_path / "m.gguf", "maple", {"rope.freq_base_swa": 1e6})

    assert GGUFCheckpoint(path).config.rope_theta == 1e6


def test_minicpm_has_three_factors_and_interleaved_rows(tmp_path):
    checkpoint = GGUFCheckpoint(write_model(tmp_path / "m.gguf", "minicpm"))

    config = checkpoint.config
    assert config.embedding_scale == 12 and checkpoint.warnings == []
    assert config.residual_scale == pytest.approx(1.4 / 2**0.5, rel=1e-7)
    assert config.logit_scale == 64 / C
    rows = tensors("minicpm")["blk.0.attn_q.weight"]
    found = checkpoint.read("layers.0.mixer.q_proj.weight", (C, C))
    np.testing.assert_array_equal(found, unpermuted(rows))


def test_factors_of_first_minicpm_models_are_named_in_a_warning(tmp_path):
    keys = {"embedding_scale": None, "residual_scale": None, "logit_scale": None}
    checkpoint = GGUFCheckpoint(write_model(tmp_path / "m.gguf", "minicpm", keys))

    config = checkpoint.config
    assert (config.embedding_scale, config.logit_scale) == (12, 256 / C)
    assert config.residual_scale == pytest.approx(1.4 / LAYERS**0.5)
    assert "names no embedding_scale or residual_scale or logit_scale" in checkpoint.warnings[0]


@pytest.mark.parametrize(("context", "name"), [(128, "short"), (256, "long")])
def test_longrope_of_minicpm_follows_from_the_context(tmp_path, context, name):
    factors = {"long": np.linspace(2, 9, 32), "short": np.linspace(1, 3, 32)}
    keys = {"rope.scaling.type": "longrope", "context_length": context}
    keys["rope.scaling.original_context_length"] = 128
    replaced = {
        f"rope_factors_{key}.weight": each.astype(np.float32) for key, each in factors.items()
    }
    path = write_model(tmp_path / "m.gguf", "minicpm", keys, replaced)

    config = GGUFCheckpoint(path).config

    plain = 500000.0 ** (-np.arange(32) / 32)
    np.testing.assert_allclose(config.full_rope_frequencies, plain / factors[name], rtol=1e-6)


@pytest.mark.parametrize(("keys", "theta"), [({}, 5e5), ({"rope.scaling.alpha": 1000.0}, None)])
def test_hunyuan_normalises_after_rope_and_scales_its_base(tmp_path, keys, theta):
    path = write_model(tmp_path / "m.gguf", "hunyuan-dense", keys)

    config = GGUFCheckpoint(path).config

    assert config.qk_norm == "after_rope"
    assert config.rope_theta == pytest.approx(theta or 5e5 * 1000 ** (64 / 62), rel=1e-12)


REFUSED = {
    "delta net": (
        "llama",
        {"general.architecture": "qwen35"},
        r"but is 'qwen35', which needs gated delta-net layers, convolutions of four positions and",
    ),
    "rotated": (
        "qwen3",
        {"prism.hadamard.version": 1},
        "key 'prism.hadamard.version': .* rotated basis, which needs a Walsh-Hadamard transform",
    ),
    "unknown prism key": (
        "qwen3",
        {"prism.new": 7},
        r"key 'prism.new' \(value 7\) is not supported; it may change",
    ),
    "shared experts": ("maple", {"expert_shared_count": 1}, "expert_shared_count must be 0 but"),
    "sigmoid": ("maple", {"expert_gating_func": 2}, "maple.expert_gating_func must be 1 but is 2"),
    "scaled": ("maple", {"expert_weights_scale": 2.5}, "expert_weights_scale must be 1.0 but is"),
    "groups": ("maple", {"expert_group_count": 4}, "maple.expert_group_count' .value 4. is not"),
    "no experts": ("maple", {"expert_count": 0}, "expert_count must be an integer, at least 1"),
    "more than all": ("maple", {"expert_used_count": 7}, "n_active_experts must be at most"),
    "several limits": (
        "maple",
        {"swiglu_clamp_exp": [1.0, 2.0]},
        "maple.swiglu_clamp_exp must be a finite number but is",
    ),
    "limit of others": (
        "qwen3moe",
        {"swiglu_clamp_exp": [1.0, 1.0]},
        "key 'qwen3moe.swiglu_clamp_exp' .* is not supported",
    ),
    "no window": (
        "maple",
        {"attention.sliding_window": None},
        "key 'maple.attention.sliding_window' is missing",
    ),
    "experts of others": ("qwen3", {"expert_count": 8}, "qwen3.expert_count must be 0 but is 8"),
    "logits": ("minicpm", {"logit_scale": 0.0}, "minicpm.logit_scale must be above 0 but is 0.0"),
    "alpha of others": ("qwen3", {"rope.scaling.alpha": 2.0}, "scaling.alpha must be 0.0 but is"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsupported_model_is_refused_by_name(tmp_path, case):
    architecture, keys, message = REFUSED[case]
    path = write_model(tmp_path / "m.gguf", architecture, keys)

    with pytest.raises(ConfigError) as error:
        GGUFCheckpoint(path)

    found = str(error.value)
    assert found.startswith(f"{path}: ") and "\n" not in found
    assert re.search(message, found)


def test_number_of_rows_of_experts_is_that_of_the_file(tmp_path):
    name = "blk.0.ffn_up_exps.weight"
    replaced = {name: tensors("maple")[name][:-1]}
    path = write_model(tmp_path / "m.gguf", "maple", replace=replaced)
    checkpoint = GGUFCheckpoint(path)

    with pytest.raises(ConfigError, match=rf"'{name}' must have the shape \[6, 512, 256\] but has"):
        checkpoint.read(NAME, parameter_shapes(checkpoint.config)[NAME])

    assert parameter_shapes(checkpoint.config)["head.weight"] == (V, C)
