"""Imported families: configuration, tensors, ternary weights and scales equal those published."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from low_bit_directories import BLOCK
from published import (
    SHAPE,
    config_of,
    edit,
    publish,
    quantised_model,
    random_model,
    stored,
    weights,
)
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.integrations.bitnet import BitLinear, unpack_weights

from yocobit.config import ConfigError
from yocobit.importers import import_model, open_checkpoint
from yocobit.importers.huggingface.families import FAMILIES, published
from yocobit.packing import read_model

OFFLINE = {"linear_class": "bitlinear", "quantization_mode": "offline"}


@pytest.fixture(autouse=True)
def eager():
    """transformers compiles parts of its BitNet layers; uncompiled they compute the same."""
    with torch.compiler.set_stance("force_eager"):
        yield


def imported(model, tmp_path, **options):
    source = publish(model, tmp_path / "hf")
    return import_model(source, tmp_path / "model", **options)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_dense_checkpoint_keeps_every_tensor(tmp_path, kind):
    model = random_model(kind, **({"head_dim": 32} if kind != "qwen2" else {}))

    packed = imported(model, tmp_path)

    theirs = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    names = {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    names["head.weight"] = "lm_head.weight"
    for i in range(3):
        ours, layer = f"layers.{i}", f"model.layers.{i}"
        names[f"{ours}.mixer_norm.weight"] = f"{layer}.input_layernorm.weight"
        names[f"{ours}.ffn_norm.weight"] = f"{layer}.post_attention_layernorm.weight"
        names |= {f"{ours}.{a}.weight": f"{layer}.{b}.weight" for a, b in BLOCK.items()}
        if kind == "qwen2":
            biases = [f"{each}_proj.bias" for each in "qkv"]
            names |= {f"{ours}.mixer.{b}": f"{layer}.self_attn.{b}" for b in biases}
        if kind == "qwen3":
            norms = ["q_norm.weight", "k_norm.weight"]
            names |= {f"{ours}.mixer.{n}": f"{layer}.self_attn.{n}" for n in norms}
    assert packed.parameters.keys() == names.keys()
    assert sorted(names.values()) == sorted(theirs)
    for ours, name in names.items():
        np.testing.assert_array_equal(stored(packed, ours), theirs[name])


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("linear_class", ["bitlinear", "autobitlinear"])
def test_packed_ternary_weights_and_scales_are_those_published(tmp_path, kind, linear_class):
    model = quantised_model(kind, {**OFFLINE, "linear_class": linear_class})

    packed = imported(model, tmp_path)

    assert packed.config.weights == "ternary"
    for i in range(3):
        for ours, theirs in BLOCK.items():
            layer = model.get_submodule(f"model.layers.{i}.{theirs}")
            trits = layer.weight
            scale = layer.weight_scale.numpy()
            if isinstance(layer, BitLinear):
                trits, scale = unpack_weights(layer.weight, torch.float32), 1 / scale
            name = f"layers.{i}.{ours}.weight"
            np.testing.assert_array_equal(weights(packed, name), trits.detach().numpy())
            np.testing.assert_allclose(stored(packed, f"{name}_scale"), scale, rtol=2e-7)


def test_master_weights_in_online_mode_import_with_a_warning(tmp_path):
    settings = {"linear_class": "autobitlinear", "quantization_mode": "online"}
    model = quantised_model("llama", settings)
    source = publish(model, tmp_path / "hf")

    packed = import_model(source, tmp_path / "model")

    name = "layers.1.ffn.up_proj.weight"
    master = model.get_submodule("model.layers.1.mlp.up_proj").weight.detach()
    scale = master.abs().mean()
    expected = (master / scale).round().clamp(-1, 1).numpy()
    np.testing.assert_array_equal(weights(packed, name), expected)
    np.testing.assert_allclose(stored(packed, f"{name}_scale"), scale.numpy(), rtol=1e-6)
    (warning,) = open_checkpoint(source).warnings
    assert "master weights" in warning and "may differ" in warning


def test_modules_to_not_convert_stay_dense(tmp_path):
    excluded = ["lm_head", "model.layers.1.self_attn", "down_proj"]
    model = quantised_model("llama", {**OFFLINE, "modules_to_not_convert": excluded})

    packed = imported(model, tmp_path)

    formats = {name: stored.format.name for name, stored in packed.parameters.items()}
    for name in ("layers.1.mixer.q_proj.weight", "layers.0.ffn.down_proj.weight"):
        theirs = name.replace("mixer", "self_attn").replace("ffn", "mlp")
        assert formats[name] == "f32"
        expected = model.state_dict()[f"model.{theirs}"].numpy()
        np.testing.assert_array_equal(stored(packed, name), expected)
    assert formats["layers.0.mixer.q_proj.weight"] == formats["layers.1.ffn.up_proj.weight"]
    assert formats["layers.0.mixer.q_proj.weight"] == "ternary"
    assert read_model(packed.path).parameters == packed.parameters


def test_rms_norm_before_each_projection_and_a_ternary_head_import(tmp_path):
    settings = {**OFFLINE, "modules_to_not_convert": [], "use_rms_norm": True, "rms_norm_eps": 1e-4}
    model = quantised_model("qwen3", settings)

    packed = imported(model, tmp_path)

    assert packed.config.projection_norms and packed.config.head_norm
    assert packed.config.projection_norm_eps == 1e-4
    assert packed.parameters["head.weight"].format.name == "ternary"
    head = unpack_weights(model.lm_head.weight, torch.float32)
    np.testing.assert_array_equal(weights(packed, "head.weight"), head.numpy())
    state = model.state_dict()
    norms = {"head.norm.weight": "lm_head", "layers.2.ffn.down_proj.norm.weight": None}
    norms["layers.2.ffn.down_proj.norm.weight"] = "model.layers.2.mlp.down_proj"
    for ours, theirs in norms.items():
        expected = state[f"{theirs}.rms_norm.weight"].numpy()
        np.testing.assert_array_equal(stored(packed, ours), expected)
    assert read_model(packed.path).parameters == packed.parameters


def test_1bitllm_checkpoint_imports_as_masters_with_sub_norms(tmp_path):
    source = publish(random_model("bitnet", hidden_act="silu"), tmp_path / "hf")
    tensors = load_file(source / "model.safetensors")
    renamed = {
        name.replace("attn_sub_norm", "inner_attn_ln").replace("ffn_sub_norm", "ffn_layernorm"): t
        for name, t in tensors.items()
    }
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file({**renamed, buffer: torch.ones(8)}, source / "model.safetensors")
    edit(source, model_type="llama", weight_bits=1, input_bits=8, rope_parameters=None)

    packed = import_model(source, tmp_path / "model")

    assert packed.config.sub_norm and packed.config.ffn == "swiglu"
    assert packed.config.weights == "ternary" and packed.config.rope_theta == 10000.0
    name = "model.layers.1.mlp.ffn_sub_norm.weight"
    np.testing.assert_array_equal(stored(packed, "layers.1.ffn.sub_norm.weight"), tensors[name])


def test_bitnet_embedding_without_a_head_imports_with_projection_norms(tmp_path):
    model = random_model("qwen3", head_dim=32, tie_word_embeddings=True)
    source = publish(model, tmp_path / "hf")
    tensors = load_file(source / "model.safetensors")
    tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    for name, tensor in list(tensors.items()):
        if name.endswith("_proj.weight"):
            tensors[name.replace(".weight", ".norm.weight")] = torch.rand(tensor.shape[1]) + 0.5
    save_file(tensors, source / "model.safetensors")

    packed = import_model(source, tmp_path / "model")

    config = packed.config
    assert (config.weights, config.pooling, config.head_size) == ("ternary", "last", 32)
    assert config.projection_norms and not config.head_norm and config.tie_embeddings
    assert config.projection_norm_eps == config.norm_eps == 1e-6
    name = "layers.1.self_attn.o_proj.norm.weight"
    expected = tensors[name].numpy()
    np.testing.assert_array_equal(stored(packed, "layers.1.mixer.out_proj.norm.weight"), expected)


@pytest.mark.parametrize(
    ("fields", "pooling"),
    [
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, "last"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode_cls_token": True}, None),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": True}, None),
    ],
)
def test_pooling_of_sentence_transformers_is_imported(tmp_path, fields, pooling):
    source = publish(random_model("qwen3"), tmp_path / "hf")
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text(json.dumps(fields))

    if pooling is None:
        with pytest.raises(ConfigError, match="pooling_mode must be lasttoken or mean"):
            open_checkpoint(source)
    else:
        assert open_checkpoint(source).config.pooling == pooling


def test_falcon_e_without_quantization_config_imports_as_masters(tmp_path):
    source = publish(random_model("llama"), tmp_path / "hf", is_bitnet_config=True)

    checkpoint = open_checkpoint(source)

    assert checkpoint.config.weights == "ternary"
    assert checkpoint.warnings


def test_float16_tensors_stay_float16_unless_another_format_is_requested(tmp_path):
    source = publish(random_model("llama").half(), tmp_path / "hf")

    kept = import_model(source, tmp_path / "kept")
    widened = import_model(source, tmp_path / "widened", weights="f32", head="f32")
    bfloat16 = publish(random_model("llama").bfloat16(), tmp_path / "bf16")
    exact = import_model(bfloat16, tmp_path / "exact")
    rounded = import_model(bfloat16, tmp_path / "rounded", weights="f16")

    assert (kept.projection_format.name, kept.head_format.name) == ("f16", "f16")
    assert (widened.projection_format.name, widened.head_format.name) == ("f32", "f32")
    assert exact.projection_format.name == "f32" and rounded.projection_format.name == "f16"
    name = "layers.0.ffn.up_proj.weight"
    np.testing.assert_array_equal(weights(kept, name), weights(widened, name))


@pytest.mark.parametrize("head", ["int8", "int4", "f16", "f32"])
@pytest.mark.parametrize("tied", [True, False])
def test_head_and_embedding_have_the_requested_format(tmp_path, head, tied):
    model = quantised_model("llama", OFFLINE, tie_word_embeddings=tied)

    packed = imported(model, tmp_path, head=head)

    assert packed.head_format.name == head
    embedding = head if head in ("f16", "f32") else "int8"
    assert packed.parameters["embedding.weight"].format.name == embedding
    assert ("head.weight" in packed.parameters) == (not tied or head == "int4")
    assert read_model(packed.path).parameters == packed.parameters
    if head == "f32":
        expected = model.get_input_embeddings().weight.detach().numpy()
        np.testing.assert_array_equal(stored(packed, "embedding.weight"), expected)


def test_window_of_every_layer_and_of_layer_types(tmp_path):
    mistral = publish(random_model("mistral", sliding_window=16), tmp_path / "mistral")
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    changes = {"use_sliding_window": True, "sliding_window": 8, "layer_types": types}
    qwen = publish(random_model("qwen3", **changes), tmp_path / "qwen")
    later = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    qwen2 = publish(random_model("qwen2", **later), tmp_path / "qwen2")
    edit(qwen2, layer_types=None)

    configs = [open_checkpoint(each).config for each in (mistral, qwen, qwen2)]

    assert [config.layers for config in configs] == [
        ("window",) * 3,
        ("window", "full", "window"),
        ("full", "full", "window"),
    ]
    assert [config.window for config in configs] == [16, 8, 8]
    assert all(config.window_rope == "half" for config in configs)
    assert all(config.n_self_kv_heads == 2 for config in configs)


KINDS = [kind for kind in FAMILIES if kind in CONFIG_MAPPING]
EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}
WINDOW = {"use_sliding_window": True, "max_window_layers": 1}


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        *((kind, EXPERTS if FAMILIES[kind].has_experts else {}) for kind in KINDS),
        ("qwen2", WINDOW),
        ("qwen3", WINDOW),
    ],
)
def test_missing_keys_have_the_defaults_of_transformers(kind, keys):
    keys |= {key: value for key, value in SHAPE.items() if key != "tie_word_embeddings"}
    theirs = AutoConfig.for_model(kind, **keys).to_json_string(use_diff=False)

    complete = published(json.loads(theirs), "config.json")
    short = published({"model_type": kind, **keys}, "config.json")

    assert short.config == complete.config


def test_tokenizer_of_another_directory_replaces_that_of_the_checkpoint(tmp_path):
    from packed_models import tokenizer

    source = publish(random_model("llama", vocab_size=512), tmp_path / "hf", eos_token_id=3)
    other = tmp_path / "tokenizer"
    other.mkdir()
    (other / "tokenizer.json").write_text(tokenizer().to_str())

    without = import_model(source, tmp_path / "without")
    packed = import_model(source, tmp_path / "model", tokenizer=other)

    assert not (without.path / "tokenizer.json").exists()
    assert (packed.path / "tokenizer.json").read_text() == tokenizer().to_str()
    assert json.loads((packed.path / "generation_config.json").read_text())["eos_token_id"] == 3
    with pytest.raises(ConfigError, match=r"holds no tokenizer\.json; name a directory with one"):
        import_model(source, tmp_path / "none", tokenizer=source)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "falcon"}, "but is 'falcon', which has parallel blocks"),
        ({"model_type": "hgrn_bit"}, "but is 'hgrn_bit', which has an elementwise gated"),
        ({"model_type": "qwen3_5"}, "which has gated delta-net layers, which need the delta rule"),
        ({"model_type": "prism_hadamard_qwen35"}, "which has weights in a rotated basis, which"),
        ({"sparse_config": {"topk": 64}}, "sparse_config must be null but is {'topk': 64}"),
        ({"use_cla": True}, "use_cla must be false but is True"),
        ({"num_experts": 8}, "num_experts must be null but is 8"),
        ({"mlp_bias": True}, "mlp_bias must be false but is True"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping must be null but is 30.0"),
        ({"num_local_experts": 8}, "num_local_experts must be null but is 8"),
        ({"weight_bits": 2}, "weight_bits must be one of 1"),
        ({"layer_types": ["chunked_attention"] * 3}, "layer_types must be full_attention or"),
        ({"layer_types": ["full_attention"]}, "layer_types must have 3 items but has 1"),
        ({"layer_types": ["sliding_attention"] * 3}, "sliding_window must be set"),
        (
            {"num_attention_heads": 16, "head_dim": None},
            "head_size must be between 8 and 1024 but is 4",
        ),
        ({"quantization_config": {"quant_method": "gptq"}}, "quant_method must be 'bitnet' but is"),
        (
            {"quantization_config": {"quant_method": "bitnet", "linear_class": "x"}},
            "quantization_config: linear_class must be one of 'bitlinear', 'autobitlinear' but is",
        ),
        (
            {"quantization_config": {"quant_method": "bitnet", "quantization_mode": "x"}},
            "quantization_mode must be one of 'offline', 'online' but is 'x'",
        ),
        (
            {"quantization_config": {"modules_to_not_convert": ["(a+)+"]}},
            r"modules_to_not_convert must be names of modules, .* but is \('\(a\+\)\+',\)",
        ),
        (
            {"quantization_config": {"quant_method": "bitnet"}},
            "tensor 'model.layers.0.self_attn.q_proj.weight_scale' is missing",
        ),
        ({"tie_word_embeddings": True}, "'lm_head.weight' must not be there"),
    ],
)
def test_unsupported_config_is_refused_by_name(tmp_path, changes, message):
    source = publish(random_model("llama"), tmp_path / "hf")
    edit(source, **changes)

    with pytest.raises(ConfigError, match=message) as raised:
        import_model(source, tmp_path / "model")

    assert "\n" not in str(raised.value) and str(source) in str(raised.value)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (torch.tensor(0.25), None),  # without an axis
        (torch.tensor([0.0]), "must be between 1e-30 and 1e\\+30 but is 0"),
        (torch.tensor([-1.0]), "must be between 1e-30 and 1e\\+30 but is -1"),
        (torch.tensor([float("nan")]), "must be finite but is not"),
        (torch.ones(2), r"must be floats of shape \[1\] but is float32 of \[2\]"),
        (torch.ones(1, dtype=torch.int64), r"must be floats of shape \[1\] but is int64"),
    ],
)
def test_scale_must_be_one_positive_number(tmp_path, scale, message):
    source = publish(quantised_model("llama", OFFLINE), tmp_path / "hf")
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight_scale"
    save_file({**tensors, name: scale}, source / "model.safetensors")

    if message is None:
        packed = import_model(source, tmp_path / "model")
        assert stored(packed, "layers.1.ffn.up_proj.weight_scale").tolist() == [4.0]
    else:
        with pytest.raises(ConfigError, match=f"'{name}' {message}"):
            import_model(source, tmp_path / "model")


def test_tensor_that_the_model_does_not_use_is_refused_by_name(tmp_path):
    source = publish(random_model("llama"), tmp_path / "hf")
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.bias"
    save_file({**tensors, name: torch.ones(64)}, source / "model.safetensors")

    with pytest.raises(ConfigError, match=f"tensor '{name}' must not be there"):
        import_model(source, tmp_path / "model")


def test_a_copy_of_the_embedding_as_a_tied_head_is_ignored(tmp_path):
    source = publish(random_model("llama", tie_word_embeddings=True), tmp_path / "hf")
    tensors = load_file(source / "model.safetensors")
    copy = tensors["model.embed_tokens.weight"].clone()
    save_file({**tensors, "lm_head.weight": copy}, source / "model.safetensors")

    assert import_model(source, tmp_path / "model").config.tie_embeddings


def test_config_of_an_earlier_transformers_is_equal(tmp_path):
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    model = random_model("llama", rope_parameters={**scaling, "rope_theta": 5e5})
    source = publish(model, tmp_path / "hf")
    new = open_checkpoint(source).config
    edit(source, rope_parameters=None, rope_scaling=scaling, rope_theta=5e5)

    assert open_checkpoint(source).config == new
    assert new.rope_theta == 5e5 and len(new.full_rope_frequencies) == 8


def test_config_of_this_module_is_that_of_transformers():
    assert config_of("qwen3").head_dim == 128  # the default that the table repeats
    assert config_of("gemma3_text").query_pre_attn_scalar == 256
