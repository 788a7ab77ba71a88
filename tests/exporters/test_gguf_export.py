"""Exports for llama.cpp: other readers find the same weights; our importer reads the same bytes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
import transformers
from exported_models import TOKENS, random_model

from yocobit import Engine
from yocobit.config import ConfigError
from yocobit.exporters import export_gguf
from yocobit.exporters.weights import Weights
from yocobit.importers import import_model
from yocobit.importers.gguf.architectures import tensor_name
from yocobit.importers.gguf.container import GGUFFile
from yocobit.importers.gguf.tensor_types import TYPES as TENSOR_TYPES
from yocobit.importers.huggingface.rope import rope_of

FREQUENCIES = tuple(1e4 ** (-i / 32) / (1 + i % 3) for i in range(32))
GGUF_OF_OTHERS = b"GGUF\3\0\0\0" + bytes(100)
NO_TOKENIZER = "the file has no tokenizer, as the model has none"
YARN = rope_of(
    {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0,
     "original_max_position_embeddings": 8192}, 64, None, "rope",
)  # fmt: skip
QWEN3 = {"qk_norm": "before_rope", "rope_theta": 1e6}
EXPERTS = {
    "ffn": "moe",
    "n_experts": 6,
    "n_active_experts": 2,
    "d_ff": 256,
    "swiglu_limit": 7.0,
    "qk_norm": "before_rope",
    "layers": ("window", "full"),
    "window": 16,
    "window_rope": "half",
    "window_rope_frequencies": tuple(1e4 ** (-i / 16) for i in range(16)),
    "full_rope": "none",
}
PLAIN_LAYERS = {"layers": ("full", "full"), "full_rope": "half", "swiglu_limit": None}
KINDS = {
    "llama": {},
    "llama-dense": {"weights": "dense", "head_size": 32, "qkv_bias": True},
    "llama-tied": {"tie_embeddings": True, "rope_theta": 5e5},
    "llama-rope": {"full_rope_frequencies": FREQUENCIES, "rope_factor": 1.25},
    "llama-rows": {"weights": "ternary_row"},
    "windows": {"layers": ("window", "full"), "window": 16, "window_rope": "half"},
    "bitnet": {"sub_norm": True, "tie_embeddings": True},
    "bitnet-rows": {"sub_norm": True, "tie_embeddings": True, "weights": "ternary_row"},
    "qwen3": {"qk_norm": "before_rope", "head_size": 128},
    "qwen3-dense": {"weights": "dense", "qk_norm": "before_rope", "qkv_bias": True},
}


def hashes(model):
    """Hashes of the tensors of a packed model."""
    return {name: value for name, value in model.metadata.items() if name.startswith("sha256:")}


A16_KINDS = {
    "signs": {"weights": "sign_g128", **QWEN3},
    "signs-tied": {"weights": "sign_g128", **QWEN3, "tie_embeddings": True},
    "groups of 64": {"weights": "ternary_g64", **QWEN3},
    "groups of 128": {"weights": "ternary_g128", **QWEN3},
    "integers of 2 bits": {"weights": "int2_g128", **QWEN3},
    "integers of 2 bits, 64": {"weights": "int2_g64", **QWEN3},
    "rows": {"weights": "ternary_row_a16", **QWEN3},
    "yarn": {
        "weights": "ternary_g128",
        **QWEN3,
        "full_rope_frequencies": YARN.frequencies,
        "rope_factor": YARN.factor,
    },
    "permuted": {"weights": "ternary_g128"},
    "hunyuan-dense": {"weights": "ternary_g128", "qk_norm": "after_rope"},
    "minicpm": {
        "weights": "ternary_g128",
        "embedding_scale": 12.0,
        "residual_scale": 0.25,
        "logit_scale": 0.125,
        "full_rope_frequencies": FREQUENCIES,
    },
    "maple": {"weights": "ternary_row_a16", **EXPERTS},
    "qwen3moe": {"weights": "ternary_g128", **EXPERTS, **PLAIN_LAYERS},
    "experts in groups": {"weights": "ternary_g128", **EXPERTS},
}
TYPES = {"sign_g128": "Q1_0", "ternary_row_a16": "TQ2_0"}  # Q2_0 for all others


def read(path):
    """The fields, types and float32 tensors that llama.cpp's own package reads."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    floats = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    return fields, types, floats


@pytest.mark.parametrize("weights", ["tq2_0", "tq1_0"])
@pytest.mark.parametrize("kind", KINDS)
def test_import_of_an_export_has_the_same_bytes(tmp_path, kind, weights):
    model = random_model(tmp_path / "model", scale_dtype="<f2", **KINDS[kind])

    assert export_gguf(model, tmp_path / "x.gguf", weights) == [NO_TOKENIZER]

    head = None if model.config.weights == "dense" else "int8"
    again = import_model(tmp_path / "x.gguf", tmp_path / "again", head)
    assert hashes(again) == hashes(model)
    assert again.config.weights == model.config.weights
    assert again.config.ffn == model.config.ffn
    np.testing.assert_allclose(
        again.config.full_rope_frequencies, model.config.full_rope_frequencies, rtol=1e-7
    )


PAIRS = {
    "windows": {"weights": "dense", "layers": ("window", "full"), "window": 16},
    "windows with rope": {
        **{"weights": "dense", "layers": ("window", "full"), "window": 16, "full_rope": "none"},
        **{"embedding_scale": 12.0, "residual_scale": 0.25, "logit_scale": 0.125},
        **{"attention_scale": 0.25, "qkv_bias": True},
    },
    "llama": {"weights": "dense", "qkv_bias": True},
    "qwen3": {"weights": "dense", "qk_norm": "before_rope", "qkv_bias": True},
    "bitnet": {"sub_norm": True, "tie_embeddings": True},
    "rows": {"weights": "ternary_row"},
    "hunyuan-dense": {"weights": "ternary_g128", "qk_norm": "after_rope"},
}


@pytest.mark.parametrize("kind", PAIRS)
def test_import_of_an_export_with_interleaved_rope_has_the_same_logits(tmp_path, kind):
    """Rows of Q and K are exported in the order of the architecture, and imported in halves."""
    changes = {"full_rope": "interleaved", **PAIRS[kind], "scale_dtype": "<f2"}
    model = random_model(tmp_path / "model", **changes)

    export_gguf(model, tmp_path / "x.gguf")

    head = None if model.config.weights == "dense" else "int8"
    again = import_model(tmp_path / "x.gguf", tmp_path / "again", head)
    assert again.config.full_rope == "half"
    expected = Engine(model, 1, None).logits(TOKENS, "f32")
    logits = Engine(again, 1, None).logits(TOKENS, "f32")
    errors = np.abs(logits - expected).max(axis=1) / np.abs(expected).max()
    if model.config.weights == "dense":
        assert errors.max() < 1e-5
        return
    # Float32 sums of another order round few activations to another int8 value.
    assert np.quantile(errors, 0.25) < 1e-4
    assert errors.max() < 2e-2


@pytest.mark.parametrize("low_bit_tables", [False, True])
@pytest.mark.parametrize("kind", A16_KINDS)
def test_import_of_an_export_with_scales_of_groups_has_the_same_bytes(
    tmp_path, kind, low_bit_tables
):
    changes = {**A16_KINDS[kind], "low_bit_tables": low_bit_tables}
    model = random_model(tmp_path / "model", scale_dtype="<f2", **changes)

    assert export_gguf(model, tmp_path / "x.gguf") == [NO_TOKENIZER]

    again = import_model(tmp_path / "x.gguf", tmp_path / "again")
    assert hashes(again) == hashes(model)
    fields = again.config.fields()
    for name, own in model.config.fields().items():
        if name in WINDOW_FIELDS and "window" not in model.config.layers:
            continue
        if isinstance(own, float) or name.endswith("frequencies"):
            np.testing.assert_allclose(fields[name], own, rtol=2e-7, err_msg=name)
        else:
            assert fields[name] == own, name
    types = {tensor.type_id for tensor in GGUFFile(tmp_path / "x.gguf").tensors.values()}
    assert gguf_id(TYPES.get(model.config.weights, "Q2_0")) in types


WINDOW_FIELDS = ("window", "window_rope", "window_rope_frequencies")


def gguf_id(name):
    return next(each.id for each in TENSOR_TYPES if each.name == name)


@pytest.mark.parametrize("weights", ["ternary_g128", "sign_g128"])
def test_reference_code_finds_the_weights_of_the_model(tmp_path, weights):
    """Both halves of a group of 128 have its scale; one weight after the other is decoded."""
    model = random_model(tmp_path / "model", scale_dtype="<f2", **QWEN3, weights=weights)

    export_gguf(model, tmp_path / "x.gguf")

    file = GGUFFile(tmp_path / "x.gguf")
    name = "layers.1.ffn.down_proj.weight"
    raw = file.read(file.tensors[tensor_name(name)])
    own = Weights(model).floats_of(name)
    size, block = (18, 128) if weights == "sign_g128" else (18, 64)
    for row, first in ((0, 0), (5, 256), (255, 384)):
        at = (row * 512 + first) // block * size
        scale = raw[at : at + 2].view("<f2")[0].astype(np.float32)
        for j in range(block):
            if weights == "sign_g128":
                value = 1 if raw[at + 2 + j // 8] >> j % 8 & 1 else -1
            else:
                value = int(raw[at + 2 + j // 4] >> 2 * (j % 4) & 3) - 1
            assert own[row, first + j] == value * scale


@pytest.mark.parametrize("weights", ["tq2_0", "tq1_0"])
def test_llama_cpps_codecs_decode_the_weights_of_the_model(tmp_path, weights):
    model = random_model(tmp_path / "model", scale_dtype="<f2", qk_norm="before_rope")

    export_gguf(model, tmp_path / "x.gguf", weights, context=777)

    fields, types, floats = read(tmp_path / "x.gguf")
    assert fields["general.architecture"] == "qwen3"  # its rows are in our order
    assert fields["qwen3.context_length"] == 777
    assert fields["yocobit.activations"] == "int8_per_token"
    assert types["blk.0.ffn_up.weight"] == weights.upper()
    assert types["token_embd.weight"] == "Q8_0"
    for name in model.parameters:
        own = Weights(model).floats_of(name)
        np.testing.assert_array_equal(floats[tensor_name(name)], own, err_msg=name)


def test_files_with_windows_have_the_sinks_that_llama_cpp_requires(tmp_path):
    model = random_model(tmp_path / "model", **KINDS["windows"])

    export_gguf(model, tmp_path / "x.gguf")

    fields, _, floats = read(tmp_path / "x.gguf")
    assert fields["granite_swa.attention.sliding_window_pattern"] == [True, False]
    assert fields["granite_swa.attention.rope_pattern"] == [True, True]
    for i in range(2):
        assert np.exp(floats[f"blk.{i}.attn_sinks.weight"]).tolist() == [0] * model.config.n_heads


def test_int4_heads_keep_codes_and_scales(tmp_path):
    model = random_model(tmp_path / "model", head="int4", qk_norm="before_rope")

    export_gguf(model, tmp_path / "x.gguf")

    _, types, floats = read(tmp_path / "x.gguf")
    assert types["output.weight"] == "Q4_0"
    own = Weights(model).floats_of("head.weight")
    np.testing.assert_array_equal(floats["output.weight"], own)


def test_signs_and_scales_per_row_are_exported_as_trits(tmp_path):
    for weights in ("sign", "ternary_row"):
        changes = {"weights": weights, "qk_norm": "before_rope", "scale_dtype": "<f2"}
        model = random_model(tmp_path / weights, **changes)

        export_gguf(model, tmp_path / "x.gguf")

        _, types, floats = read(tmp_path / "x.gguf")
        name = "layers.1.mixer.v_proj.weight"
        assert types[tensor_name(name)] == "TQ2_0"
        own = Weights(model).floats_of(name)
        np.testing.assert_array_equal(floats[tensor_name(name)], own)


@pytest.mark.parametrize("rope", ["half", "interleaved"])
@pytest.mark.parametrize("kind", ["llama-dense", "qwen3-dense"])
def test_transformers_reads_the_weights_of_its_own_layout(tmp_path, kind, rope):
    changes = {**KINDS[kind], "head_size": 128, "qkv_bias": False, "full_rope": rope}
    model = random_model(tmp_path / "model", **changes)

    export_gguf(model, tmp_path / "x.gguf")

    load = transformers.AutoModelForCausalLM.from_pretrained
    theirs = load(tmp_path, gguf_file="x.gguf", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor([TOKENS])).logits[0].numpy()
    logits = Engine(model, 1, None).logits(TOKENS, "f32")
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


def test_scales_that_float16_rounds_are_named(tmp_path):
    model = random_model(tmp_path / "model")

    notes = export_gguf(model, tmp_path / "x.gguf")

    assert [note.partition(", by")[0] for note in notes] == [
        "scales of embedding and head are rounded to float16",
        "scales of projections are rounded to float16",
        NO_TOKENIZER,
    ]
    assert "by at most 0.0" in notes[1]  # 2^-11 = 0.049 %
    again = import_model(tmp_path / "x.gguf", tmp_path / "again", head="int8")
    name = "layers.0.ffn.up_proj.weight"
    ours, theirs = Weights(model).matrix(name), Weights(again).matrix(name)
    np.testing.assert_array_equal(theirs.integers, ours.integers)
    np.testing.assert_allclose(theirs.scales, ours.scales, rtol=2**-11)


def test_tables_in_floats_round_no_scale_of_a_row(tmp_path):
    model = random_model(tmp_path / "model")

    notes = export_gguf(model, tmp_path / "x.gguf", tables="f32")

    assert not any("embedding" in note for note in notes)
    _, types, floats = read(tmp_path / "x.gguf")
    assert types["token_embd.weight"] == types["output.weight"] == "F32"
    own = Weights(model).floats_of("head.weight")
    np.testing.assert_array_equal(floats["output.weight"], own)
    halves = export_gguf(model, tmp_path / "y.gguf", tables="f16")
    assert "embedding and head are rounded to float16" in halves


REFUSED = {
    "layers": ({"layers": ("retention", "cross")}, "layers must all be 'full'"),
    "relu2": (
        {"sub_norm": True, "tie_embeddings": True, "ffn": "relu2"},
        "ffn must be 'swiglu' in llama.cpp's architecture 'bitnet' but is 'relu2'",
    ),
    "untied": ({"sub_norm": True}, "tie_embeddings must be True in llama.cpp's architecture"),
    "windows with norms": (
        {"layers": ("window", "full"), "window_rope": "half", "qk_norm": "before_rope"},
        "qk_norm must be 'none' in llama.cpp's architecture 'granite_swa'",
    ),
    "RoPE of windows": (
        {"layers": ("window", "full"), "window_rope": "interleaved"},
        "full_rope and window_rope must be 'half' or 'none', with the frequencies of a base, in",
    ),
    "norms": ({"projection_norms": True}, "projection_norms must be False"),
    "odd": ({"weights": "odd_g128"}, "for GGUF but is odd_g128, for which llama.cpp has no"),
    "experts": ({**EXPERTS, "tie_embeddings": True}, "tie_embeddings must be False"),
    "RoPE of experts": (
        {**EXPERTS, "full_rope": "half"},
        "full_rope must be 'none' in llama.cpp's architecture 'maple' but is 'half'",
    ),
    "limit of plain experts": (
        {**EXPERTS, **PLAIN_LAYERS, "swiglu_limit": 7.0},
        "swiglu_limit must be None in llama.cpp's architecture 'qwen3moe'",
    ),
    "layers of experts": (
        {"ffn": "moe", "n_experts": 6, "n_active_experts": 2, "layers": ("window", "gate")},
        "layers must be 'window' and 'full'",
    ),
    "rope": (
        {"qk_norm": "before_rope", "full_rope_frequencies": FREQUENCIES},
        "full_rope_frequencies must be those of a base, or of YaRN with a context of 2.n tokens, "
        "in llama.cpp's architecture 'qwen3'",
    ),
    "columns": ({"d_ff": 520}, "must be a multiple of 256 for TQ2_0 but have 520"),
    "rows": (
        {"d_model": 264, "n_heads": 3, "n_kv_heads": 3, "n_self_heads": 3, "n_self_kv_heads": 3},
        "must be a multiple of 32 for Q8_0 but have 264; choose --head f32",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_models_that_llama_cpp_computes_differently_are_refused_by_name(tmp_path, kind):
    changes, message = REFUSED[kind]
    model = random_model(tmp_path / "model", **changes)

    with pytest.raises(ConfigError, match=message):
        export_gguf(model, tmp_path / "x.gguf")

    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


def test_scales_beyond_float16_are_refused(tmp_path):
    model = random_model(tmp_path / "model", scale_factor=1e-6)

    with pytest.raises(ConfigError, match=r"scales of 'layers.0.mixer.q_proj.weight' must be from"):
        export_gguf(model, tmp_path / "x.gguf")


@pytest.mark.parametrize("content", [b"mine", GGUF_OF_OTHERS])
def test_earlier_export_is_replaced_and_no_other_file(tmp_path, content):
    model = random_model(tmp_path / "model")
    (tmp_path / "mine").write_bytes(content)

    for _ in range(2):
        export_gguf(model, tmp_path / "x.gguf")
    with pytest.raises(ConfigError, match="exists and is not a GGUF file that yocobit exported"):
        export_gguf(model, tmp_path / "mine")

    assert (tmp_path / "mine").read_bytes() == content


def test_a_type_of_ternary_matrices_is_refused_for_scales_of_groups(tmp_path):
    model = random_model(tmp_path / "model", scale_dtype="<f2", weights="sign_g128", **QWEN3)

    with pytest.raises(ConfigError, match="type must be left out but is tq1_0"):
        export_gguf(model, tmp_path / "x.gguf", "tq1_0")
    assert not (tmp_path / "x.gguf").exists()
