"""Exports for llama.cpp: other readers find the same weights; our importer reads the same bytes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
import transformers
from random_models import TOKENS, random_model

from yocobit import Engine
from yocobit.config import ConfigError
from yocobit.exporters import export_gguf
from yocobit.exporters.weights import Weights
from yocobit.importers import import_model
from yocobit.importers.gguf.architectures import tensor_name

FREQUENCIES = tuple(1e4 ** (-i / 32) / (1 + i % 3) for i in range(32))
NO_TOKENIZER = "the file has no tokenizer, as the model has none"
KINDS = {
    "llama": {},
    "llama-dense": {"weights": "dense", "head_size": 32, "qkv_bias": True},
    "llama-tied": {"tie_embeddings": True, "rope_theta": 5e5},
    "llama-rope": {"full_rope_frequencies": FREQUENCIES, "rope_factor": 1.25},
    "bitnet": {"sub_norm": True, "tie_embeddings": True},
    "qwen3": {"qk_norm": "before_rope", "head_size": 128},
    "qwen3-dense": {"weights": "dense", "qk_norm": "before_rope", "qkv_bias": True},
}


def hashes(model):
    """Hashes of the tensors of a packed model."""
    return {name: value for name, value in model.metadata.items() if name.startswith("sha256:")}


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
    assert again.config.ffn == model.config.ffn
    np.testing.assert_allclose(
        again.config.full_rope_frequencies, model.config.full_rope_frequencies, rtol=1e-7
    )


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


@pytest.mark.parametrize("kind", ["llama-dense", "qwen3-dense"])
def test_transformers_reads_the_weights_of_its_own_layout(tmp_path, kind):
    changes = {**KINDS[kind], "head_size": 128, "qkv_bias": False}
    model = random_model(tmp_path / "model", **changes)

    export_gguf(model, tmp_path / "x.gguf")

    load = transformers.AutoModelForCausalLM.from_pretrained
    theirs = load(tmp_path, gguf_file="x.gguf", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor([TOKENS])).logits[0].numpy()
    logits = Engine(model, 1, None).logits(TOKENS)
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
    "norms": ({"projection_norms": True}, "projection_norms must be False"),
    "after": ({"qk_norm": "after_rope"}, "qk_norm must be 'before_rope'"),
    "rope": (
        {"qk_norm": "before_rope", "full_rope_frequencies": FREQUENCIES},
        r"full_rope_frequencies must be \(\) in llama.cpp's architecture 'qwen3'",
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


def test_existing_gguf_file_is_replaced_and_no_other(tmp_path):
    model = random_model(tmp_path / "model")
    (tmp_path / "notes.txt").write_text("mine")

    for _ in range(2):
        export_gguf(model, tmp_path / "x.gguf")
    with pytest.raises(ConfigError, match="exists and is not a GGUF file"):
        export_gguf(model, tmp_path / "notes.txt")
