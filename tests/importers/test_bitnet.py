"""Imported BitNet b1.58 checkpoints: the logits of the engine equal those of transformers."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
import transformers
from packed_models import tokenizer
from safetensors.torch import load_file, save_file

from yocobit import Engine
from yocobit.config import ConfigError
from yocobit.data.tokenizer import END
from yocobit.importers import import_model
from yocobit.packing import writer

SHAPE = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 264,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
TOKENS = np.random.default_rng(0).integers(0, 320, 60)


def theirs(**changes):
    """transformers' model with random weights, norms included, in float32."""
    torch.manual_seed(0)
    config = transformers.BitNetConfig(**{**SHAPE, **changes})
    model = transformers.BitNetForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=0.05)
    return model


def quantised_logits(model):
    """Logits of transformers' model with fake quantisation of each projection.

    The embedding, which is also the head, is quantised to int8 rows as in the packed model.
    """
    with torch.no_grad():
        weight = model.model.embed_tokens.weight
        scale = weight.abs().amax(dim=1, keepdim=True) / 127
        weight.copy_((weight / scale).round() * scale)
        for name, module in model.named_modules():
            if name.endswith("_proj"):
                s = module.weight.abs().mean()
                module.weight.copy_((module.weight / s).round().clamp(-1, 1) * s)
                module.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0]),))
        return model(torch.from_numpy(TOKENS)[None]).logits[0].numpy()


def rounded(x):
    scale = 127 / x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-5)
    return (x * scale).round().clamp(-128, 127) / scale


def pack_rows(codes):
    """Pack four rows per byte, as transformers does."""
    parts = (codes + 1).to(torch.uint8).chunk(4)
    return parts[0] | parts[1] << 2 | parts[2] << 4 | parts[3] << 6


def save_packed(model, directory, linear_class):
    """Save in the published form: packed codes and a scale per matrix."""
    model.save_pretrained(directory)
    tensors = load_file(directory / "model.safetensors")
    for name in list(tensors):
        if name.endswith("_proj.weight"):
            s = tensors[name].abs().mean()
            tensors[name] = pack_rows((tensors[name] / s).round().clamp(-1, 1))
            scale = s if linear_class == "autobitlinear" else 1 / s
            tensors[f"{name}_scale"] = scale.reshape(1)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    edit_config(
        directory, quantization_config={"quant_method": "bitnet", "linear_class": linear_class}
    )


def edit_config(directory, **changes):
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def relative_error(logits, expected):
    return np.abs(logits - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("tied", [True, False])
def test_engine_equals_transformers_on_master_weights(tmp_path, tied):
    model = theirs(tie_word_embeddings=tied)
    if not tied:
        with torch.no_grad():  # exact in int8, as quantised_logits does for the embedding
            head = model.lm_head.weight
            scale = head.abs().amax(dim=1, keepdim=True) / 127
            head.copy_((head / scale).round() * scale)
    model.save_pretrained(tmp_path / "hf")

    packed = import_model(tmp_path / "hf", tmp_path / "model")

    logits = Engine(packed, threads=2, kernels=None).logits(TOKENS, "f32")
    assert relative_error(logits, quantised_logits(model)) < 5e-3


@pytest.mark.parametrize("linear_class", ["autobitlinear", "bitlinear"])
def test_packed_and_master_weights_import_to_equal_logits(tmp_path, linear_class):
    model = theirs()
    model.save_pretrained(tmp_path / "masters")
    save_packed(model, tmp_path / "packed", linear_class)

    logits = [
        Engine(import_model(tmp_path / kind, tmp_path / f"{kind}-model"), 1, None).logits(
            TOKENS, "f32"
        )
        for kind in ("masters", "packed")
    ]

    assert relative_error(logits[1], logits[0]) < 5e-3  # the inverse of a scale rounds


@pytest.mark.parametrize("kind", ["packed", "masters"])
def test_import_needs_torch_for_master_weights_only(tmp_path, kind):
    save_packed(theirs(), tmp_path / "packed", "autobitlinear")
    theirs().save_pretrained(tmp_path / "masters")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from yocobit.importers import import_model\n"
        "import_model(*map(Path, sys.argv[1:]))\n"
    )

    arguments = [sys.executable, "-c", code, str(tmp_path / kind), str(tmp_path / "model")]
    ended = subprocess.run(arguments, capture_output=True, text=True)

    assert (ended.returncode == 0) == (kind == "packed")
    assert (tmp_path / "model").exists() == (kind == "packed")
    assert kind == "packed" or "master weights need PyTorch" in ended.stderr


def test_peak_memory_of_import_is_a_few_copies_of_the_largest_tensor(tmp_path, monkeypatch):
    shape = {"hidden_size": 256, "intermediate_size": 2048, "num_hidden_layers": 8}
    theirs(**shape).save_pretrained(tmp_path / "hf")
    largest, total = 4 * 2048 * 256, (tmp_path / "hf" / "model.safetensors").stat().st_size
    import_model(tmp_path / "hf", tmp_path / "first")  # loads modules

    monkeypatch.setattr(writer, "_PIECE_BYTES", 1 << 12)  # the write buffer
    tracemalloc.start()
    import_model(tmp_path / "hf", tmp_path / "model")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 4 * largest < total / 5


def test_bfloat16_and_shards_import(tmp_path):
    model = theirs().bfloat16()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1

    whole = import_model(tmp_path / "whole", tmp_path / "a")
    shards = import_model(tmp_path / "shards", tmp_path / "b")

    assert whole.file.read_bytes() == shards.file.read_bytes()


def test_generation_defaults_are_imported(tmp_path):
    theirs().save_pretrained(tmp_path / "hf")
    edit_config(tmp_path / "hf", eos_token_id=7, bos_token_id=5)
    (tmp_path / "hf" / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [7, 9], "temperature": 0.6, "transformers_version": "5"})
    )

    packed = import_model(tmp_path / "hf", tmp_path / "model")

    engine = Engine(packed, threads=1, kernels=None)
    assert engine.generation_config == {
        "bos_token_id": 5,
        "eos_token_id": [7, 9],
        "temperature": 0.6,
    }


@pytest.mark.parametrize("has_file", [True, False], ids=["own file", "tokenizer config"])
def test_chat_template_is_imported(tmp_path, has_file):
    source = tmp_path / "hf"
    theirs(vocab_size=tokenizer().get_vocab_size()).save_pretrained(source)
    edit_config(source, bos_token_id=0, eos_token_id=0)
    (source / "generation_config.json").unlink()
    hf = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(), bos_token=END, eos_token=END
    )
    hf.save_pretrained(source)
    hf.chat_template = (
        "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
        "{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}Assistant: {% endif %}"
    )
    if has_file:
        (source / "chat_template.jinja").write_text(hf.chat_template)
    else:
        file = source / "tokenizer_config.json"
        file.write_text(
            json.dumps({**json.loads(file.read_text()), "chat_template": hf.chat_template})
        )
    messages = [{"role": "user", "content": "Hello."}]

    engine = Engine(import_model(source, tmp_path / "model"), threads=1, kernels=None)

    expected = hf.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert engine.encode(engine.chat_template.render(messages)) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "model_type must be one of 'bitnet', .* but is 'bert'"),
        ({"hidden_act": "gelu"}, "hidden_act must be silu or relu2 or .* but is 'gelu'"),
        ({"attention_bias": True}, "attention_bias must be false but is True"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_type must not be 'dynamic'"),
        ({"num_attention_heads": 0}, "num_attention_heads must be between 1 .* but is 0"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers must be an integer but is '3'"),
        ({"head_dim": 64}, r"'model.layers.0.self_attn.q_proj.weight' must be .* \[256, 128\]"),
        ({"vocab_size": 321}, r"'model.embed_tokens.weight' must be floats of shape \[321, 128\]"),
        ({"num_hidden_layers": 4}, r"'model.layers.3.input_layernorm.weight' is missing"),
    ],
)
def test_unsupported_checkpoint_is_rejected_and_leaves_no_files(tmp_path, changes, message):
    theirs().save_pretrained(tmp_path / "hf")
    edit_config(tmp_path / "hf", **changes)

    with pytest.raises(ConfigError, match=message):
        import_model(tmp_path / "hf", tmp_path / "model")

    assert not (tmp_path / "model").exists()


def test_float_weights_with_a_scale_must_be_ternary(tmp_path):
    save_packed(theirs(), tmp_path / "hf", "autobitlinear")
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = torch.ones(SHAPE["intermediate_size"], SHAPE["hidden_size"])
    tensors[name][5, 5] = 0.5
    save_file(tensors, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ConfigError, match=f"'{name}' must hold -1, 0 and 1, .* but has 0.5"):
        import_model(tmp_path / "hf", tmp_path / "model")


def test_code_3_is_rejected(tmp_path):
    save_packed(theirs(), tmp_path / "hf", "autobitlinear")
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][5, 5] = 255
    save_file(tensors, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ConfigError, match=r"'model.layers.1.mlp.up_proj.weight' must hold codes"):
        import_model(tmp_path / "hf", tmp_path / "model")


GOOD = {
    "model_type": "bitnet",
    "vocab_size": 290,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "32"}, "hidden_size must be an integer"),
        ({"hidden_size": 10**30}, "hidden_size must be between"),
        ({"num_hidden_layers": 1.5}, "num_hidden_layers must be an integer"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers must be between 1 and 1024"),
        ({"num_attention_heads": True}, "num_attention_heads must be an integer"),
        ({"num_key_value_heads": 3}, "n_kv_heads must divide n_heads"),
        ({"vocab_size": 10**9}, "vocab_size must be"),
        ({"vocab_size": None}, "vocab_size must be"),
        ({"intermediate_size": []}, "intermediate_size must be"),
        ({"rope_parameters": 5}, "rope_parameters must be an object but is 5"),
        ({"rope_parameters": {"rope_type": ["default"]}}, "rope_type must be one of 'default'"),
        ({"rope_parameters": {"rope_theta": "x"}}, "rope_theta must be"),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object but is 'linear'"),
        ({"quantization_config": 5}, "quantization_config must be an object but is 5"),
        ({"hidden_act": ["silu"]}, "hidden_act must be a string"),
        ({"rms_norm_eps": -1}, "norm_eps must be"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be"),
        ({"head_dim": None}, "model.safetensors: cannot be read"),
        ({"head_dim": [8]}, "head_dim must be an integer"),
        ({"attention_bias": {"a": [1]}}, "attention_bias must be false but is"),
        ({"model_type": [1] * 5000}, "model_type must be one of 'bitnet'"),
    ],
)
def test_an_odd_config_is_one_line(tmp_path, changes, message):
    source = tmp_path / "hf"
    source.mkdir()
    (source / "config.json").write_text(json.dumps({**GOOD, **changes}))

    with pytest.raises(ConfigError, match=message) as raised:
        import_model(source, tmp_path / "model")

    assert len(str(raised.value)) < 1000 and "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "3", '{"a": NaN}', "\0", ""])
def test_a_config_that_is_not_an_object_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)

    with pytest.raises(ConfigError, match=r"config\.json: "):
        import_model(tmp_path, tmp_path / "model")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chat_template": [{"name": "default"}]}, "chat_template must be a string but is"),
        ({"chat_template": "x", "bos_token": 5}, "bos_token must be a string but is 5"),
        ({"chat_template": "x", "eos_token": {"content": []}}, "eos_token must be a string but"),
    ],
)
def test_an_odd_chat_template_is_one_line(tmp_path, fields, message):
    theirs().save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer_config.json").write_text(json.dumps(fields))

    with pytest.raises(ConfigError, match=message):
        import_model(tmp_path / "hf", tmp_path / "model")


def test_keys_that_transformers_ignores_are_ignored_and_named(tmp_path):
    """Published checkpoints have "bits", which no code reads."""
    save_packed(theirs(), tmp_path / "hf", "autobitlinear")
    file = tmp_path / "hf" / "config.json"
    own = {**json.loads(file.read_text())["quantization_config"], "bits": 2}
    assert "bits" not in transformers.BitNetQuantConfig(**own).to_dict()

    plain = import_model(tmp_path / "hf", tmp_path / "plain")
    edit_config(tmp_path / "hf", quantization_config=own)
    lines: list[str] = []
    packed = import_model(tmp_path / "hf", tmp_path / "model", report=lines.append)

    assert (packed.path / "model.safetensors").read_bytes() == (
        plain.path / "model.safetensors"
    ).read_bytes()
    assert f"warning: {file}: quantization_config: 'bits' ignored, as by transformers" in lines
