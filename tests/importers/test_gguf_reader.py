"""GGUF models as Checkpoints, against transformers' own reader of GGUF files."""

import json
import re

import numpy as np
import pytest
import torch
import transformers
from float64_decoder import Float64Decoder
from gguf_models import BITNET, LAYERS, TOKENS, V, encoded, tensors, ternary, write_model

from yocobit import Engine
from yocobit.config import ConfigError
from yocobit.importers import IntegerMatrix, import_model
from yocobit.importers.gguf.architectures import architecture_of, tensor_name
from yocobit.importers.gguf.configuration import read_config
from yocobit.importers.gguf.container import GGUFFile
from yocobit.importers.gguf.reader import GGUFCheckpoint
from yocobit.mixers import parameter_shapes

PROMPT = np.random.default_rng(0).integers(0, V, 40)
HF_NAMES = {
    "mixer_norm": "input_layernorm",
    "mixer.q_proj": "self_attn.q_proj",
    "mixer.k_proj": "self_attn.k_proj",
    "mixer.v_proj": "self_attn.v_proj",
    "mixer.q_norm": "self_attn.q_norm",
    "mixer.k_norm": "self_attn.k_norm",
    "mixer.out_proj": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn.gate_proj": "mlp.gate_proj",
    "ffn.up_proj": "mlp.up_proj",
    "ffn.down_proj": "mlp.down_proj",
}
GEMMA_NAMES = {
    **HF_NAMES,
    "mixer_post_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_post_norm": "post_feedforward_layernorm",
}
SHAPES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_size": 128, "tied": True},
    "gemma3": {"n_heads": 2, "n_kv_heads": 1, "head_size": 256, "tied": True},
}
KEYS = {"gemma3": {"attention.sliding_window": 16, "rope.freq_base": 1e6}}


def theirs(directory):
    """transformers' model of the file."""
    load = transformers.AutoModelForCausalLM.from_pretrained
    return load(directory, gguf_file="m.gguf", dtype=torch.float32).eval()


def hf_name(name, names):
    fixed = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
    if (first := name.split(".")[0]) in fixed:
        return f"{fixed[first]}.weight"
    _, layer, part = name.split(".", 2)
    part, _, kind = part.rpartition(".")
    return f"model.layers.{layer}.{names[part]}.{kind}"


def read_all(checkpoint):
    shapes = parameter_shapes(checkpoint.config)
    return {name: checkpoint.read(name, shape) for name, shape in shapes.items()}


def refusal(path):
    with pytest.raises(ConfigError) as error:
        read_all(GGUFCheckpoint(path))
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("architecture", SHAPES)
def test_parameters_equal_those_of_transformers(tmp_path, architecture):
    keys, shape = KEYS.get(architecture), SHAPES[architecture]
    write_model(tmp_path / "m.gguf", architecture, keys, **shape)
    model = theirs(tmp_path)
    expected = {name: values.numpy() for name, values in model.state_dict().items()}
    is_gemma = architecture == "gemma3"

    checkpoint = GGUFCheckpoint(tmp_path / "m.gguf")

    parameters = read_all(checkpoint)
    for name, values in parameters.items():
        wanted = expected[hf_name(name, GEMMA_NAMES if is_gemma else HF_NAMES)]
        if is_gemma and name.endswith("norm.weight"):
            values = values - np.float32(1)  # transformers adds 1 to the weights of norms
        np.testing.assert_array_equal(values, wanted, err_msg=name)
    assert len(parameters) == sum(1 for _ in model.parameters())
    config, hf = checkpoint.config, model.config
    assert config.norm_eps == pytest.approx(1e-5)
    assert (config.n_heads, config.n_kv_heads) == (hf.num_attention_heads, hf.num_key_value_heads)
    assert config.tie_embeddings == hf.tie_word_embeddings
    assert config.weights == "dense"


@pytest.mark.parametrize("architecture", SHAPES)
def test_logits_of_a_dense_model_equal_transformers(tmp_path, architecture):
    keys, shape = KEYS.get(architecture), SHAPES[architecture]
    write_model(tmp_path / "m.gguf", architecture, keys, **shape)
    model = theirs(tmp_path)
    if architecture != "gemma3":
        model.config.rms_norm_eps = 1e-5
        for module in model.modules():
            if hasattr(module, "variance_epsilon"):
                module.variance_epsilon = 1e-5
    with torch.no_grad():
        expected = model(torch.from_numpy(PROMPT)[None]).logits[0].numpy()

    packed = import_model(tmp_path / "m.gguf", tmp_path / "model")

    logits = Engine(packed, threads=1, kernels=None).logits(PROMPT, "f32")
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("architecture", ["llama", "qwen3", *BITNET])
def test_trits_and_scales_of_i2_s_are_the_published_ones(tmp_path, architecture):
    trits, scales, replaced = ternary(architecture)
    write_model(tmp_path / "m.gguf", architecture, replace=replaced)

    checkpoint = GGUFCheckpoint(tmp_path / "m.gguf")

    assert checkpoint.config.weights == "ternary"
    assert checkpoint.source_type == "GGUF I2_S"
    n_ternary = 0
    for name, values in read_all(checkpoint).items():
        if not isinstance(values, IntegerMatrix):
            continue
        n_ternary += 1
        theirs = tensor_name(name)
        expected = trits[theirs]
        if architecture == "llama" and name.split(".")[-2] in ("q_proj", "k_proj"):
            # llama.cpp's converter: (h, 2, D / 2) to (h, D / 2, 2)
            expected = expected.reshape(-1, 32, 2, 256).swapaxes(1, 2).reshape(expected.shape)
        np.testing.assert_array_equal(values.integers, expected, err_msg=name)
        assert values.scale.tolist() == [scales[theirs]]
    assert n_ternary == len(trits)


@pytest.mark.parametrize("architecture", ["llama", *BITNET])
def test_logits_of_a_ternary_model_equal_the_float64_statement(tmp_path, architecture):
    replaced = ternary(architecture)[2]
    write_model(tmp_path / "m.gguf", architecture, replace=replaced)

    # The inputs of a head in f32 are not rounded, which leaves fewer ties.
    packed = import_model(tmp_path / "m.gguf", tmp_path / "model", "f32")

    statement = Float64Decoder.of_packed(packed)
    tokens = statement.tokens_without_ties(12)
    logits = Engine(packed, threads=1, kernels=None).logits(tokens, "f32")
    expected = statement.logits(tokens)
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0", "F16", "F32", "BF16", "Q8_0"])
def test_trits_of_the_architecture_bitnet_are_found_in_every_type(tmp_path, kind):
    trits, scales, replaced = ternary("bitnet", kind)
    write_model(tmp_path / "m.gguf", "bitnet", replace=replaced)

    parameters = read_all(GGUFCheckpoint(tmp_path / "m.gguf"))

    found = {tensor_name(name): v for name, v in parameters.items() if isinstance(v, IntegerMatrix)}
    assert found.keys() == trits.keys()
    rounding = {"Q8_0": 1e-3, "BF16": 4e-3}.get(kind, 0)
    for name, matrix in found.items():
        np.testing.assert_array_equal(matrix.integers, trits[name])
        assert matrix.scale == pytest.approx(scales[name], rel=rounding)


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
def test_activations_of_other_architectures_are_quantised_if_the_file_says_so(tmp_path, kind):
    trits, scales, replaced = ternary("llama", kind)
    keys = {"yocobit.activations": "int8_per_token"}
    ours = write_model(tmp_path / "ours.gguf", "llama", keys, replaced)
    others = write_model(tmp_path / "others.gguf", "llama", None, replaced)

    checkpoint, other = GGUFCheckpoint(ours), GGUFCheckpoint(others)

    name, theirs = "layers.0.ffn.up_proj.weight", "blk.0.ffn_up.weight"
    assert (checkpoint.config.weights, other.config.weights) == ("ternary", "ternary_row_a16")
    assert checkpoint.warnings == other.warnings == []
    for each in (checkpoint, other):
        matrix = each.read(name, (512, 256))
        np.testing.assert_array_equal(matrix.integers, trits[theirs])
        np.testing.assert_array_equal(np.unique(matrix.scale), scales[theirs])


def test_blocks_of_zeros_do_not_need_the_scale_of_the_others(tmp_path):
    trits, scales, replaced = ternary("bitnet", "TQ2_0")
    name = "blk.1.ffn_down.weight"
    trits[name][3, :256] = 0
    trits[name][5] = 0
    replaced[name] = encoded("TQ2_0", trits[name], scales[name])
    path = write_model(tmp_path / "m.gguf", "bitnet", replace=replaced)

    matrix = GGUFCheckpoint(path).read("layers.1.ffn.down_proj.weight", (256, 512))

    np.testing.assert_array_equal(matrix.integers, trits[name])
    assert matrix.scale.tolist() == [scales[name]]


def test_scale_tensor_multiplies_the_scale_of_its_matrix(tmp_path):
    _, scales, replaced = ternary("bitnet-25")
    replaced["blk.0.attn_q.scale"] = np.array([3], dtype=np.float32)
    path = write_model(tmp_path / "m.gguf", "bitnet-25", replace=replaced)

    checkpoint = GGUFCheckpoint(path)

    for part, factor in (("q", 3), ("k", 1)):
        name, theirs = f"layers.0.mixer.{part}_proj.weight", f"blk.0.attn_{part}.weight"
        matrix = checkpoint.read(name, parameter_shapes(checkpoint.config)[name])
        assert matrix.scale.tolist() == [np.float32(factor) * scales[theirs]]


@pytest.mark.parametrize(
    ("architecture", "tokenizer", "ffn"),
    [
        ("bitnet-b1.58", "gpt2", "relu2"),
        ("bitnet-25", "gpt2", "relu2"),
        ("bitnet", "gpt2", "relu2"),  # 2B4T
        ("bitnet", "llama", "swiglu"),  # 1bitLLM
    ],
)
def test_activation_follows_from_architecture_and_tokenizer(tmp_path, architecture, tokenizer, ffn):
    replaced = ternary(architecture)[2]
    keys = {"tokenizer.ggml.model": tokenizer}
    path = write_model(tmp_path / "m.gguf", architecture, keys, replaced)

    checkpoint = GGUFCheckpoint(path)

    assert checkpoint.config.ffn == ffn
    assert checkpoint.config.sub_norm
    assert ["names no activation" in each for each in checkpoint.warnings] == (
        [True] if architecture == "bitnet" else []
    )


def test_master_weights_are_read_with_a_warning(tmp_path):
    path = write_model(tmp_path / "m.gguf", "bitnet-b1.58")

    checkpoint = GGUFCheckpoint(path)
    values = read_all(checkpoint)["layers.0.ffn.up_proj.weight"]

    assert values.dtype == np.float32 and values.shape == (512, 256)
    assert checkpoint.warnings == [
        "projections are master weights; their trits may differ from published ones"
    ]


def test_projection_in_floats_of_a_ternary_model_keeps_its_format(tmp_path):
    replaced = ternary("llama")[2]
    weights = np.random.default_rng(0).normal(size=(512, 256)).astype(np.float16)
    replaced["blk.1.ffn_up.weight"] = weights
    path = write_model(tmp_path / "m.gguf", "llama", replace=replaced)

    checkpoint = GGUFCheckpoint(path)

    name = "layers.1.ffn.up_proj.weight"
    assert {key: each.name for key, each in checkpoint.formats.items()} == {name: "f16"}
    np.testing.assert_array_equal(checkpoint.read(name, (512, 256)), weights)


def test_ternary_head_stays_ternary(tmp_path):
    trits = np.random.default_rng(0).integers(-1, 2, (V, 256))
    replaced = ternary("llama")[2] | {"output.weight": encoded("I2_S", trits, 0.25)}
    path = write_model(tmp_path / "m.gguf", "llama", replace=replaced)

    checkpoint = GGUFCheckpoint(path)

    matrix = checkpoint.read("head.weight", (V, 256))
    assert checkpoint.formats["head.weight"].name == "ternary"
    np.testing.assert_array_equal(matrix.integers, trits)
    packed = import_model(path, tmp_path / "model")
    assert packed.parameters["head.weight"].format.name == "ternary"


@pytest.mark.parametrize("tied", [True, False])
def test_f16_model_is_stored_in_f16_once(tmp_path, tied):
    halves = {
        name: values.astype(np.float16)
        for name, values in tensors("llama", tied=tied).items()
        if values.ndim == 2
    }
    path = write_model(tmp_path / "m.gguf", "llama", replace=halves, tied=tied)

    packed = import_model(path, tmp_path / "model")

    formats = {name: each.format.name for name, each in packed.parameters.items()}
    assert {name for name, each in formats.items() if each == "f32"} == {
        name for name in formats if "norm" in name
    }
    assert ("head.weight" in formats) == (not tied)


def test_norms_before_projections_are_those_of_bitnet_embedding_models(tmp_path):
    shapes = {"attn_q": 256, "attn_k": 256, "attn_v": 256, "attn_output": 512, "ffn_gate": 256}
    shapes |= {"ffn_up": 256, "ffn_down": 512}
    rng = np.random.default_rng(0)
    norms = {
        f"blk.{i}.{name}_norm_in.weight": rng.uniform(0.5, 1.5, size).astype(np.float16)
        for i in range(LAYERS)
        for name, size in shapes.items()
    }
    replaced = ternary("qwen3", head_size=128, tied=True)[2] | norms
    keys = {"pooling_type": 3}
    path = write_model(tmp_path / "m.gguf", "qwen3", keys, replaced, head_size=128, tied=True)

    checkpoint = GGUFCheckpoint(path)

    assert checkpoint.config.projection_norms and checkpoint.config.qk_norm == "before_rope"
    assert checkpoint.config.pooling == "last" and checkpoint.config.head_size == 128
    found = read_all(checkpoint)["layers.1.mixer.out_proj.norm.weight"]
    np.testing.assert_array_equal(found, norms["blk.1.attn_output_norm_in.weight"])


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.attn_rot_embd"])
def test_tensors_of_rope_frequencies_are_accepted(tmp_path, name):
    replaced = {name: np.ones(32, dtype=np.float32)}

    assert GGUFCheckpoint(write_model(tmp_path / "m.gguf", "llama", replace=replaced))


HALF = np.array([0.5], dtype=np.float32)
REFUSED = {
    "other architecture": (
        {"general.architecture": "qwen35"},
        {},
        "general.architecture must be one of llama, .* but is 'qwen35'",
    ),
    "rotated weights": ({"prism.hadamard.block": 1024}, {}, "prism.hadamard.block.*rotated basis"),
    "an unknown key": (
        {"attention.new_thing": 7},
        {},
        r"key 'llama.attention.new_thing' \(value 7\) is not supported",
    ),
    "experts": ({"expert_count": 8}, {}, "llama.expert_count must be 0 but is 8"),
    "soft caps": (
        {"final_logit_softcapping": 30.0},
        {},
        "llama.final_logit_softcapping must be 0.0 but is 30.0",
    ),
    "no causality": ({"attention.causal": False}, {}, "llama.attention.causal must be True"),
    "CLS pooling": ({"pooling_type": 2}, {}, "llama.pooling_type must be 0 .none., 1"),
    "no layers": ({"block_count": None}, {}, "key 'llama.block_count' is missing"),
    "a string for a number": (
        {"block_count": "2"},
        {},
        "llama.block_count must be an integer, at least 1 and at most 1024, but is '2'",
    ),
    "no heads": ({"attention.head_count": 0}, {}, "llama.attention.head_count must be"),
    "other sizes of V": (
        {"attention.key_length": 64, "attention.value_length": 32},
        {},
        "llama.attention.value_length must be 64 but is 32",
    ),
    "unknown scaling": (
        {"rope.scaling.type": "ntk"},
        {},
        "llama.rope.scaling.type must be none, linear, yarn or longrope but is 'ntk'",
    ),
    "part of RoPE": (
        {"rope.dimension_count": 32},
        {},
        "llama.rope.dimension_count must be the head size 64 but is 32",
    ),
    "other activations": (
        {"yocobit.activations": "int4"},
        {},
        "yocobit.activations must be int8_per_token but is 'int4'",
    ),
    "a missing tensor": ({}, {"blk.1.ffn_up.weight": None}, "'blk.1.ffn_up.weight' is missing"),
    "no embedding": ({}, {"token_embd.weight": None}, "'token_embd.weight' is missing"),
    "an unknown tensor": (
        {},
        {"blk.0.attn_output.bias": np.zeros(256, np.float32)},
        "tensor 'blk.0.attn_output.bias' is not part of a llama model",
    ),
    "a factor of a norm": (
        {},
        {"blk.0.attn_norm.scale": np.ones(1, np.float32)},
        "tensor 'blk.0.attn_norm.scale' is not part of a llama model",
    ),
    "another shape": (
        {},
        {"blk.0.ffn_up.weight": np.zeros((256, 512), np.float32)},
        r"'blk.0.ffn_up.weight' must have the shape \[512, 256\] but has \[256, 512\]",
    ),
    "an infinite weight": (
        {},
        {"blk.0.ffn_norm.weight": np.full(256, np.inf, np.float32)},
        "tensor 'blk.0.ffn_norm.weight' must be finite but is not",
    ),
    "bad divisors": (
        {},
        {"rope_freqs.weight": np.zeros(32, np.float32)},
        "tensor 'rope_freqs.weight' must be 32 positive numbers",
    ),
    "divisors and scaling": (
        {"rope.scaling.factor": 4.0},
        {"rope_freqs.weight": np.ones(32, np.float32)},
        "llama.rope.scaling.type must be left out with rope_freqs.weight",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsupported_file_is_refused_by_name(tmp_path, case):
    keys, replaced, message = REFUSED[case]
    path = write_model(tmp_path / "m.gguf", "llama", keys, replaced)

    assert re.search(message, refusal(path))


def test_truncated_file_is_refused_at_every_length(tmp_path):
    path = write_model(tmp_path / "m.gguf", "llama", replace=ternary("llama")[2])
    data = path.read_bytes()

    for length in np.random.default_rng(0).integers(0, len(data) - 32, 200):
        path.write_bytes(data[:length])
        refusal(path)


BITNET_REFUSED = {
    "a zero scale": ("I2_S", 0.0, {}, "has the scale 0.0, not above 0"),
    "a negative scale": ("I2_S", -1.0, {}, "has the scale -1.0, not above 0"),
    "a NaN": ("I2_S", np.nan, {}, "has the scale nan, not above 0"),
    "a negative factor": ("I2_S", 1.0, {"blk.0.ffn_up.scale": -HALF}, "'blk.0.ffn_up.scale' must"),
    "no tokenizer": ("I2_S", 1.0, {"tokenizer": None}, "tokenizer.ggml.model must be 'llama'"),
}


@pytest.mark.parametrize("case", BITNET_REFUSED)
def test_unsupported_bitnet_file_is_refused_by_name(tmp_path, case):
    kind, scale, replaced, message = BITNET_REFUSED[case]
    trits, _, stored = ternary("bitnet")
    name = "blk.0.ffn_up.weight"
    stored[name] = encoded(kind, trits[name], scale)
    keys = {"tokenizer.ggml.model": None} if "tokenizer" in replaced else {}
    stored |= {key: value for key, value in replaced.items() if key != "tokenizer"}
    path = write_model(tmp_path / "m.gguf", "bitnet", keys, stored)

    assert re.search(message, refusal(path))


def with_scales(scales, tmp_path):
    """A file of the architecture "bitnet" with these scales of a matrix (256, 512)."""
    trits, _, replaced = ternary("bitnet", "TQ2_0", head_size=128)
    name = "blk.0.attn_output.weight"
    replaced[name] = encoded("TQ2_0", trits[name], scales.repeat(512 // scales.shape[1], axis=1))
    return trits[name], write_model(tmp_path / "m.gguf", "bitnet", replace=replaced, head_size=128)


def test_scales_of_rows_in_a_model_with_quantised_activations_are_kept(tmp_path):
    scales = np.linspace(0.5, 1, 256, dtype=np.float16)
    trits, path = with_scales(scales[:, None], tmp_path)
    checkpoint = GGUFCheckpoint(path)

    matrix = checkpoint.read("layers.0.mixer.out_proj.weight", trits.shape)

    assert checkpoint.config.weights == "ternary_row"
    np.testing.assert_array_equal(matrix.integers, trits)
    np.testing.assert_array_equal(matrix.scale, scales)


def test_several_scales_in_a_row_with_quantised_activations_are_refused(tmp_path):
    _, path = with_scales(np.linspace(0.5, 1, 512).reshape(256, 2), tmp_path)

    assert re.search(
        "'blk.0.attn_output.weight' must have one scale, or one per row .* from 0.5 to 1$",
        refusal(path),
    )


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_rounded_weights_of_bitnet_are_refused(tmp_path, kind):
    name = "blk.0.ffn_up.weight"
    weights = np.random.default_rng(0).normal(size=(512, 256))
    replaced = ternary("bitnet")[2] | {name: encoded(kind, weights, 1)}
    path = write_model(tmp_path / "m.gguf", "bitnet", replace=replaced)

    assert f"'{name}' must be trits times one scale but is of type {kind}" in refusal(path)


def scaled(tmp_path, keys, tensors=None):
    """The configuration of a model with other keys of RoPE."""
    return GGUFCheckpoint(write_model(tmp_path / "m.gguf", "llama", keys, tensors)).config


def hf_rope(**parameters):
    """Frequencies and factor of transformers for heads of 64."""
    parameters = {"rope_theta": 500000.0, **parameters}
    config = transformers.LlamaConfig(
        hidden_size=256, num_attention_heads=4, rope_parameters=parameters,
        max_position_embeddings=512,
    )  # fmt: skip
    initialise = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
    frequencies, factor = initialise(config, "cpu")
    return frequencies.double().numpy(), factor


def test_llama_3_divisors_give_the_frequencies_of_transformers(tmp_path):
    rule = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    frequencies, _ = hf_rope(**rule)
    divisors = (500000.0 ** (-np.arange(32) / 32) / frequencies).astype(np.float32)

    config = scaled(tmp_path, {}, {"rope_freqs.weight": divisors})

    np.testing.assert_allclose(config.full_rope_frequencies, frequencies, rtol=1e-6)
    assert config.rope_factor == 1


def test_yarn_keys_give_the_frequencies_of_transformers(tmp_path):
    keys = {
        "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 128,
    }  # fmt: skip

    config = scaled(tmp_path, keys)

    frequencies, factor = hf_rope(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=128
    )
    np.testing.assert_allclose(config.full_rope_frequencies, frequencies, rtol=1e-6)
    assert config.rope_factor == pytest.approx(factor)


@pytest.mark.parametrize("key", ["rope.scaling.factor", "rope.scale_linear"])
def test_linear_scaling_divides_the_frequencies(tmp_path, key):
    config = scaled(tmp_path, {key: 4.0})

    np.testing.assert_allclose(
        config.full_rope_frequencies, 500000.0 ** (-np.arange(32) / 32) / 4, rtol=1e-12
    )


@pytest.mark.parametrize(("context", "name"), [(512, "long"), (128, "short")])
def test_longrope_factors_follow_from_the_context(tmp_path, context, name):
    factors = {"long": np.linspace(2, 9, 32), "short": np.linspace(1, 3, 32)}
    keys = {
        "rope.scaling.type": "longrope", "rope.scaling.attn_factor": 1.25,
        "rope.scaling.original_context_length": 128, "context_length": context,
    }  # fmt: skip
    tensors = {
        f"rope_factors_{key}.weight": each.astype(np.float32) for key, each in factors.items()
    }

    config = scaled(tmp_path, keys, tensors)

    plain = 500000.0 ** (-np.arange(32) / 32)
    np.testing.assert_allclose(config.full_rope_frequencies, plain / factors[name], rtol=1e-6)
    assert config.rope_factor == 1.25


def test_unscaled_rope_needs_no_table(tmp_path):
    config = scaled(tmp_path, {"rope.scaling.type": "linear", "rope.scaling.factor": 1.0})

    assert config.full_rope_frequencies == () and config.rope_theta == 500000.0


@pytest.mark.parametrize(
    ("keys", "layers"),
    [
        ({}, "ff"),
        ({"attention.sliding_window": 16}, "ww"),
        ({"attention.sliding_window": 16, "attention.sliding_window_pattern": 2}, "wf"),
        (
            {
                "attention.sliding_window": 16,
                "attention.sliding_window_pattern": [False, True],
            },
            "fw",
        ),
    ],
)
def test_windows_follow_the_pattern_of_the_file(tmp_path, keys, layers):
    config = scaled(tmp_path, keys)

    assert "".join(mixer[0] for mixer in config.layers) == layers
    assert config.window == (16 if "w" in layers else 256)


def test_windows_of_gemma_have_their_own_base(tmp_path):
    write_model(tmp_path / "m.gguf", "gemma3", KEYS["gemma3"], **SHAPES["gemma3"])

    config = GGUFCheckpoint(tmp_path / "m.gguf").config

    assert config.layers == ("window", "window")
    assert config.rope_theta == 1e6 and config.full_rope_frequencies == ()
    np.testing.assert_allclose(
        config.window_rope_frequencies, 10000.0 ** (-np.arange(128) / 128), rtol=1e-12
    )


def test_scalars_of_the_metadata_are_those_of_the_model(tmp_path):
    scalars = {"embedding_scale": 12.0, "residual_scale": 0.25, "logit_scale": 0.0625}

    config = scaled(tmp_path, scalars | {"attention.scale": 0.5})

    assert config.attention_scale == 0.5
    assert {name: getattr(config, name) for name in scalars} == scalars


@pytest.mark.parametrize(("n_layers", "scale"), [(61, None), (62, 128**-0.5)])
def test_gemma_3_of_62_layers_scales_attention_by_the_width_per_head(tmp_path, n_layers, scale):
    keys = KEYS["gemma3"] | {"block_count": n_layers}
    path = write_model(tmp_path / "m.gguf", "gemma3", keys, **SHAPES["gemma3"])
    file = GGUFFile(path)

    config, _ = read_config(file, architecture_of(file.metadata, file.path))

    assert config.attention_scale == scale


def test_parameter_can_be_read_again(tmp_path):
    checkpoint = GGUFCheckpoint(write_model(tmp_path / "m.gguf", "llama"))

    first, second = (checkpoint.read("layers.0.ffn.up_proj.weight", (512, 256)) for _ in range(2))

    np.testing.assert_array_equal(first, second)


def test_text_files_are_those_in_the_metadata(tmp_path):
    packed = import_model(write_model(tmp_path / "m.gguf", "llama"), tmp_path / "model")

    engine = Engine(packed, threads=1, kernels=None)

    assert engine.tokenizer.encode("ab").ids[-1] == TOKENS.index("ab")
    generation = json.loads((tmp_path / "model/generation_config.json").read_text())
    assert generation["bos_token_id"] == 257
    assert set(generation["eos_token_id"]) == {258, 259}
    template = (tmp_path / "model/chat_template.jinja").read_text()
    assert template.endswith("{{ bos_token }}{{ messages[0].content }}")
    assert "bos_token = " in template


def test_tokenizer_of_a_directory_replaces_the_one_of_the_file(tmp_path):
    import_model(write_model(tmp_path / "m.gguf", "llama"), tmp_path / "other")
    keys = {"tokenizer.ggml.pre": "unheard-of"}
    path = write_model(tmp_path / "n.gguf", "llama", keys)
    with pytest.raises(ConfigError, match=r"tokenizer.ggml.pre must be one of"):
        import_model(path, tmp_path / "model")

    import_model(path, tmp_path / "model", tokenizer=tmp_path / "other")

    tokenizers = [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("other", "model")]
    assert tokenizers[0] == tokenizers[1]
