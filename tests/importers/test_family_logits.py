"""Logits of imported families: the engine equals transformers' own classes in float64.

Ternary models quantise activations, and a value next to a rounding boundary may round up in float64
and down in float32. Texts without such ties come from the float64 reference of the packed model.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from float64_decoder import Float64Decoder
from packed_models import tokenizer
from published import edit, publish, quantised_model, random_model
from safetensors.torch import load_file, save_file
from transformers.integrations.bitnet import AutoBitLinear, BitLinear

from yocobit import Engine
from yocobit.importers import import_model

T = 32
TOKENS = np.random.default_rng(1).integers(0, 264, T)
OFFLINE = {"linear_class": "bitlinear", "quantization_mode": "offline"}
AUTO = {**OFFLINE, "linear_class": "autobitlinear"}
ONLINE = {"linear_class": "autobitlinear", "quantization_mode": "online"}
ROPE = {"rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 8}
LLAMA3 = {**ROPE, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
GEMMA = {
    "head_dim": 32,
    "sliding_window": 6,
    "query_pre_attn_scalar": 20,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "tie_word_embeddings": True,
}
ALPHA = {"rope_type": "dynamic", "rope_theta": 100.0, "alpha": 50.0, "factor": 1.0}
WINDOW = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}


@pytest.fixture(autouse=True)
def eager():
    with torch.compiler.set_stance("force_eager"):
        yield


@torch.no_grad()
def their_logits(model, tokens):
    """Return the logits of transformers in float64."""
    model = model.double()
    for layer in model.modules():
        if isinstance(layer, BitLinear | AutoBitLinear):
            layer.dtype = torch.float64
    return model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].numpy()


def relative_error(logits, expected):
    return np.abs(logits - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("llama", {"head_dim": 24, "tie_word_embeddings": True}),
        ("llama", {"rope_parameters": LLAMA3}),
        ("llama", {"rope_parameters": {**ROPE, "rope_type": "yarn"}}),
        ("mistral", {"sliding_window": 6}),
        ("qwen2", {}),
        ("qwen2", WINDOW),
        ("qwen3", {"head_dim": 32}),
        ("gemma3_text", GEMMA),
        ("hunyuan_v1_dense", {"head_dim": 32, "rope_parameters": ALPHA}),
    ],
)
def test_logits_of_dense_families_equal_those_of_transformers(tmp_path, kind, changes):
    model = random_model(kind, **changes)
    packed = import_model(publish(model, tmp_path / "hf"), tmp_path / "model")

    logits = Engine(packed, threads=1, kernels=None).logits(TOKENS, "f32")

    assert relative_error(logits, their_logits(model, TOKENS)) < 1e-5


def test_logits_of_experts_equal_those_of_transformers(tmp_path):
    experts = {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 128,
        "norm_topk_prob": True,
    }
    model = random_model("qwen3_moe", **experts, hidden_size=128, head_dim=32)
    model.set_experts_implementation("eager")
    source = tmp_path / "hf"
    model.save_pretrained(source)  # writes a tensor per expert
    packed = import_model(source, tmp_path / "model")

    logits = Engine(packed, threads=1, kernels=None).logits(TOKENS, "f32")

    assert packed.config.n_experts == 8
    assert relative_error(logits, their_logits(model, TOKENS)) < 1e-5


@pytest.mark.parametrize("tied", [True, False])
def test_logits_of_minicpm_equal_those_of_a_model_with_its_scales(tmp_path, tied):
    """MiniCPM is not in transformers; Granite is the same model with other names for the scales."""
    longrope = {
        "rope_type": "longrope",
        "rope_theta": 500.0,
        "short_factor": [1.0 + i / 8 for i in range(8)],
        "long_factor": [1.0 + i for i in range(8)],
        "original_max_position_embeddings": 16,
    }
    scales = {
        "embedding_multiplier": 12.0,
        "residual_multiplier": 1.4 / 3**0.5,
        "logits_scaling": 64 / 16,
        "attention_multiplier": 0.25,
    }
    changes = {"tie_word_embeddings": tied, "rope_parameters": longrope, **scales}
    model = random_model("granite", **changes)
    source = publish(model, tmp_path / "hf")
    theirs = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16}
    rope = {"rope_scaling": longrope, "rope_parameters": None, "rope_theta": 500.0}
    edit(source, model_type="minicpm", **theirs, **rope)

    packed = import_model(source, tmp_path / "model")

    logits = Engine(packed, threads=1, kernels=None).logits(TOKENS, "f32")
    assert relative_error(logits, their_logits(model, TOKENS)) < 1e-5


@pytest.mark.parametrize(
    ("kind", "quantization", "changes"),
    [
        ("bitnet", AUTO, {"hidden_act": "relu2"}),
        ("bitnet", ONLINE, {"hidden_act": "relu2"}),
        # The heads of 1bitLLM's 3B model.
        (
            "bitnet",
            ONLINE,
            {"hidden_act": "silu", "hidden_size": 200, "num_attention_heads": 2},
        ),
        ("llama", OFFLINE, {"head_dim": 32}),  # Falcon3
        ("llama", {**OFFLINE, "modules_to_not_convert": ["lm_head", "down_proj"]}, {}),
        ("qwen2", {**OFFLINE, "use_rms_norm": True}, {}),
        ("qwen2", AUTO, {}),
        (
            "qwen3",
            {**OFFLINE, "use_rms_norm": True, "rms_norm_eps": 1e-3, "modules_to_not_convert": []},
            {"head_dim": 32},
        ),
        ("gemma3_text", {**ONLINE, "use_rms_norm": True}, GEMMA),
    ],
)
def test_logits_of_ternary_families_equal_those_of_transformers(
    tmp_path, kind, quantization, changes
):
    model = quantised_model(kind, quantization, **changes)
    packed = import_model(publish(model, tmp_path / "hf"), tmp_path / "model", "f32")
    statement = Float64Decoder.of_packed(packed)
    tokens = statement.tokens_without_ties(T)

    logits = Engine(packed, threads=1, kernels=None).logits(tokens, "f32")

    assert relative_error(logits, statement.logits(tokens)) < 1e-5
    assert relative_error(logits, their_logits(model, tokens)) < 1e-5


@torch.no_grad()
def test_hidden_states_of_a_bitnet_embedding_are_those_of_bitlinear_with_its_norm(tmp_path):
    settings = {**ONLINE, "use_rms_norm": True, "rms_norm_eps": 1e-6}
    changes = {"head_dim": 32, "tie_word_embeddings": True, "vocab_size": 512}
    model = quantised_model("qwen3", settings, **changes)
    source = publish(model, tmp_path / "hf")
    tensors = {
        name.removeprefix("model.").replace(".rms_norm.", ".norm."): tensor
        for name, tensor in load_file(source / "model.safetensors").items()
    }
    save_file(tensors, source / "model.safetensors")
    fields = (source / "config.json").read_text().replace('"quantization_config"', '"_"')
    (source / "config.json").write_text(fields)
    (source / "tokenizer.json").write_text(tokenizer().to_str())

    packed = import_model(source, tmp_path / "model", "f32")

    tokens = Float64Decoder.of_packed(packed).tokens_without_ties(T)
    engine = Engine(packed, threads=1, kernels=None)
    hidden = engine.session(T, "f32").hidden_states(tokens)
    expected = model.double().model(torch.from_numpy(tokens.astype(np.int64))[None])
    assert relative_error(hidden, expected.last_hidden_state[0].numpy()) < 1e-5
    assert packed.config.pooling == "last"
