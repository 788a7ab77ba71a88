"""Exports for transformers: it computes the same logits, and our importer reads the same bytes."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
import torch
import transformers
from exported_models import TOKENS, random_model
from packed_models import tokenizer
from safetensors.numpy import load_file

from yocobit import Engine
from yocobit.config import ConfigError
from yocobit.data.tokenizer import END
from yocobit.exporters import export_gguf, export_huggingface
from yocobit.exporters.weights import Weights
from yocobit.importers import import_model
from yocobit.packing.text_files import read_text_files

FREQUENCIES = tuple(1e4 ** (-i / 32) / (1 + i % 3) for i in range(32))
KINDS = {
    "bitnet": {"sub_norm": True, "ffn": "relu2", "tie_embeddings": True},
    "bitnet-silu": {"sub_norm": True},
    "llama": {},
    "llama-sign": {"weights": "sign"},
    "llama-norms": {"projection_norms": True},
    "llama-dense": {"weights": "dense", "ffn": "geglu", "head_size": 32},
    "llama-rope": {"weights": "dense", "full_rope_frequencies": FREQUENCIES, "rope_factor": 1.2},
    "qwen2": {"weights": "dense", "qkv_bias": True, "tie_embeddings": True},
    "qwen3": {"qk_norm": "before_rope", "head_size": 96},
    "qwen3-dense": {"weights": "dense", "qk_norm": "before_rope"},
    "llama-pairs": {"full_rope": "interleaved", "rope_theta": 5e5},
    "llama-nano-pairs": {"full_rope": "interleaved", "n_self_heads": 2},  # unused
    "qwen2-pairs": {"full_rope": "interleaved", "weights": "dense", "qkv_bias": True},
    "qwen3-pairs": {"full_rope": "interleaved", "weights": "dense", "qk_norm": "before_rope"},
}
PAIRS = {kind for kind in KINDS if kind.endswith("pairs")}  # imported in another order of rows


def hashes(model):
    """Hashes of the tensors of a packed model."""
    return {name: value for name, value in model.metadata.items() if name.startswith("sha256:")}


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_computes_the_logits_of_the_engine(tmp_path, kind):
    model = random_model(tmp_path / "model", **KINDS[kind])

    export_huggingface(model, tmp_path / "hf")

    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    assert theirs.config.model_type == kind.partition("-")[0]
    with torch.no_grad():
        expected = theirs(torch.tensor([TOKENS])).logits[0].numpy()
    logits = Engine(model, 1, None).logits(TOKENS, "f32")
    errors = np.abs(logits - expected).max(axis=1) / np.abs(expected).max()
    if model.config.weights == "dense":
        assert errors.max() < 1e-5
        return
    # The head rounds its input to 15 bits. Float32 sums of another order round few activations to
    # another int8 value; all tokens after such a one differ by about 1 / 127.
    assert np.quantile(errors, 0.25) < 1e-4
    assert errors.max() < 2e-2


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"llama-sign"} - PAIRS))
def test_import_of_an_export_has_the_same_bytes(tmp_path, kind):
    model = random_model(tmp_path / "model", head="f32", **KINDS[kind])

    export_huggingface(model, tmp_path / "hf")

    again = import_model(tmp_path / "hf", tmp_path / "again", head="f32")
    assert hashes(again) == hashes(model)


def test_import_of_an_export_has_the_signs_as_trits(tmp_path):
    model = random_model(tmp_path / "model", weights="sign")

    export_huggingface(model, tmp_path / "hf")

    again = import_model(tmp_path / "hf", tmp_path / "again")
    name = "layers.1.ffn.down_proj.weight"
    ours, theirs = Weights(model).matrix(name), Weights(again).matrix(name)
    np.testing.assert_array_equal(theirs.integers, ours.integers)
    np.testing.assert_array_equal(theirs.scales, ours.scales)


def test_heads_in_integers_are_exported_as_the_engine_computes_them(tmp_path):
    model = random_model(tmp_path / "model", head="int4", tie_embeddings=True)

    export_huggingface(model, tmp_path / "hf")

    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    fields = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert not fields["tie_word_embeddings"]  # the two tables have other values
    assert tensors["lm_head.weight"].dtype == np.float32
    rows = Weights(model).floats_of("head.weight")
    np.testing.assert_array_equal(tensors["lm_head.weight"], rows)


def test_projections_in_float16_are_reordered_too(tmp_path):
    changes = {"full_rope": "interleaved", "weights": "dense", "projections": "f16"}
    model = random_model(tmp_path / "model", head="f32", **changes)

    export_huggingface(model, tmp_path / "hf")

    again = import_model(tmp_path / "hf", tmp_path / "again", head="f32")
    name = "layers.0.mixer.k_proj.weight"
    assert again.parameters[name].format.name == "f16"
    expected = Engine(model, 1, None).logits(TOKENS, "f32")
    logits = Engine(again, 1, None).logits(TOKENS, "f32")
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


def test_tensors_in_float16_stay_float16(tmp_path):
    model = random_model(tmp_path / "model", head="f16")

    export_huggingface(model, tmp_path / "hf")

    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    assert tensors["model.embed_tokens.weight"].dtype == np.float16
    assert tensors["model.norm.weight"].dtype == np.float32


def test_tokenizer_template_and_generation_defaults_are_exported(tmp_path):
    known = tokenizer()
    generation = {"bos_token_id": 0, "eos_token_id": [0, 300], "temperature": 0.5}
    template = b"{% for m in messages %}{{ m.content }}{% endfor %}"
    files = (known.to_str().encode(), generation, template)
    model = random_model(tmp_path / "model", text=files, vocab_size=512)

    export_huggingface(model, tmp_path / "hf", context=777)

    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert (theirs.bos_token, theirs.eos_token) == (END, END)
    text = "In the beginning"
    assert theirs(text).input_ids == Engine(model, 1, None).encode(text)
    assert theirs(text).input_ids == [0, *known.encode(text).ids]
    chat = [{"role": "user", "content": "hello"}]
    assert theirs.apply_chat_template(chat, tokenize=False) == "hello"
    assert read_text_files(tmp_path / "hf", 512).generation == generation
    config = transformers.AutoConfig.from_pretrained(tmp_path / "hf")
    assert config.max_position_embeddings == 777


@pytest.mark.parametrize("export", [export_huggingface, export_gguf])
def test_rope_theta_without_a_base_in_halves_is_refused(tmp_path, export):
    model = random_model(tmp_path / "model", full_rope="interleaved", rope_theta=9e11)

    with pytest.raises(ConfigError, match=r"rope_theta .* must be at most 4\.2.*e\+11 .* 9e\+11;"):
        export(model, tmp_path / "out")

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("export", [export_huggingface, export_gguf])
def test_invalid_generation_config_is_refused(tmp_path, export):
    files = (tokenizer().to_str().encode(), {"bos_token_id": 0}, None)
    model = random_model(tmp_path / "model", text=files, vocab_size=512)
    (tmp_path / "model" / "generation_config.json").write_text('{"bos_token_id": -1}')

    with pytest.raises(
        ConfigError, match=r"generation_config\.json: bos_token_id must be at least"
    ):
        export(model, tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_a_bos_id_without_a_token_is_refused(tmp_path):
    files = (tokenizer().to_str().encode(), {"bos_token_id": 515}, None)  # ids end at 511
    model = random_model(tmp_path / "model", text=files, vocab_size=520)

    with pytest.raises(ConfigError, match="must have a token of id 515, which is added to each"):
        export_huggingface(model, tmp_path / "hf")

    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("pad", [-1, 1 << 40, "x"])
def test_a_padding_id_without_a_token_is_left_out(tmp_path, pad):
    files = (tokenizer().to_str().encode(), {"eos_token_id": 0, "pad_token_id": pad}, None)
    model = random_model(tmp_path / "model", text=files, vocab_size=512)

    export_huggingface(model, tmp_path / "hf")

    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "hf" / name).read_text()).get("pad_token_id") is None
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "hf").pad_token is None


REFUSED = {
    "layers": ({"layers": ("retention", "cross")}, "layers must all be 'full'"),
    "window": ({"layers": ("full", "window")}, "layers must all be 'full'"),
    "rope": ({"full_rope": "none"}, "full_rope must be 'half'"),
    "nope": (
        {"nope_layers": (1,)},
        r"nope_layers must be \(\) in transformers' model type 'llama'",
    ),
    "partial": ({"full_rope_frequencies": (1.0, 0.1)}, "must rotate the whole head"),
    "scale": ({"attention_scale": 0.5}, r"attention_scale must be 1 / sqrt\(head size\)"),
    "embedding": ({"scale_embedding": True}, "embedding_factor must be 1.0 in .* but is 16.0"),
    "residual": ({"residual_scale": 0.5}, "residual_scale must be 1.0"),
    "logits": ({"logit_scale": 0.5}, "logit_scale must be 1.0"),
    "post": ({"post_norms": True}, "post_norms must be False"),
    "head_norm": ({"head_norm": True}, "head_norm must be False"),
    "ffn": ({"ffn": "sign"}, "ffn must be 'swiglu' or 'relu2' or 'geglu'"),
    "row": ({"weights": "ternary_row"}, "weights must be 'ternary' or 'sign' or 'dense'"),
    "bias": ({"qkv_bias": True}, "qkv_bias must be False"),
    "norms": ({"weights": "dense", "projection_norms": True}, "projection_norms must be False"),
    "after": ({"qk_norm": "after_rope"}, "qk_norm must be 'before_rope'"),
    "dense": ({"weights": "dense", "sub_norm": True}, "weights must be 'ternary' or 'sign'"),
    "heads": ({"n_heads": 3, "n_kv_heads": 3, "head_size": 64}, "n_heads must divide d_model"),
    "head": ({"head": "ternary"}, "the head must be in floats, int8 or int4"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_models_of_other_arithmetic_are_refused_by_name(tmp_path, kind):
    changes, message = REFUSED[kind]
    model = random_model(tmp_path / "model", **changes)

    with pytest.raises(ConfigError, match=message):
        export_huggingface(model, tmp_path / "hf")

    assert not (tmp_path / "hf").exists()


def test_directory_of_other_files_is_refused(tmp_path):
    model = random_model(tmp_path / "model")

    with pytest.raises(ConfigError, match="must not exist or be an empty directory"):
        export_huggingface(model, tmp_path / "model")


@pytest.mark.parametrize(("export", "n_tables"), [(export_huggingface, 1), (export_gguf, 0)])
def test_export_holds_at_most_one_tensor(tmp_path, export, n_tables):
    model = random_model(tmp_path / "model", vocab_size=40_000)
    table_bytes = 4 * 40_000 * 256  # in float32; embedding and head are such tables
    tracemalloc.start()

    export(model, tmp_path / "out")

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < n_tables * table_bytes + (28 << 20)  # a buffer of 16 MiB, pieces of 4 MiB
