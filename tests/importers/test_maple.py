"""Maple: its configuration, and its experts in every published layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from low_bit_directories import TRITS, LowBit, mlx_tensors, stored_floats
from published import edit, stored, weights
from safetensors.torch import load_file, save_file

from yocobit import Engine
from yocobit.config import ConfigError
from yocobit.importers import import_model, open_checkpoint
from yocobit.packing import verify

E, C, F, D = 3, 256, 128, 64
FIELDS = {
    "model_type": "maple",
    "architectures": ["MapleForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_maple.MapleForCausalLM"},
    "vocab_size": 264,
    "hidden_size": C,
    "intermediate_size": 640,  # of layers without experts, of which there are none
    "moe_intermediate_size": F,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": D,
    "num_experts": E,
    "num_experts_per_tok": 2,
    "num_shared_experts": 0,
    "first_k_dense_replace": 0,
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "sliding_window": 16,
    "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
    "nope_on_global_attention": True,
    "use_qk_norm": True,
    "use_bias": False,
    "tie_word_embeddings": False,
    "max_position_embeddings": 512,
}
ATTENTION = {
    "q_proj": (4 * D, C),
    "k_proj": (2 * D, C),
    "v_proj": (2 * D, C),
    "o_proj": (C, 4 * D),
}
EXPERT = {"gate_proj": (F, C), "up_proj": (F, C), "down_proj": (C, F)}


def matrices(seed=0) -> dict[str, LowBit]:
    """Return the ternary matrices by module, with one scale per row in bfloat16."""
    rng = np.random.default_rng(seed)
    shapes = {}
    for i in range(FIELDS["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.self_attn.{name}": shape for name, shape in ATTENTION.items()}
        for e in range(E):
            shapes |= {f"{layer}.mlp.experts.{e}.{n}": shape for n, shape in EXPERT.items()}
    found = {n: LowBit.random(rng, s, TRITS, None, np.float32) for n, s in shapes.items()}
    for matrix in found.values():
        matrix.scales[:] = torch.from_numpy(matrix.scales).bfloat16().float().numpy()
    return found


def floats(seed=0) -> dict[str, torch.Tensor]:
    """Return the tensors that are not ternary."""
    torch.manual_seed(seed)
    tensors = {
        "model.word_embeddings.weight": torch.randn(264, C),
        "lm_head.weight": torch.randn(264, C),
        "model.norm.weight": torch.rand(C) + 0.5,
    }
    for i in range(FIELDS["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{layer}.{name}.weight"] = torch.rand(C) + 0.5
        for name in ("q_norm", "k_norm"):
            tensors[f"{layer}.self_attn.{name}.weight"] = torch.rand(D) + 0.5
        tensors[f"{layer}.mlp.gate.weight"] = torch.randn(E, C)
    return {name: tensor.bfloat16() for name, tensor in tensors.items()}


def stack(tensors, layer, matrix, kind):
    """Return the tensors of all experts as one with an axis of experts."""
    return torch.stack([tensors.pop(f"{layer}.mlp.experts.{e}.{matrix}.{kind}") for e in range(E)])


def write(directory: Path, layout: str) -> Path:
    """Write a checkpoint in bfloat16, or in 2 bits with scales of rows as Deepgrove does."""
    directory.mkdir()
    fields, tensors = dict(FIELDS), floats()
    for module, matrix in matrices().items():
        if layout == "bfloat16":
            tensors[f"{module}.weight"] = torch.from_numpy(matrix.floats).bfloat16()
        else:
            tensors |= mlx_tensors(module, matrix, 2, row_alpha=True)
    if layout != "bfloat16":
        fields["quantization"] = {"group_size": 128, "bits": 2, "lm_head": False}
    for i in range(FIELDS["num_hidden_layers"]) if layout in ("stacked", "fused") else ():
        layer = f"model.layers.{i}"
        for kind in ("weight", "row_alpha"):
            parts = {name: stack(tensors, layer, name, kind) for name in EXPERT}
            if layout == "fused":
                both = torch.cat([parts.pop("up_proj"), parts.pop("gate_proj")], dim=1)
                parts["up_gate_proj"] = both
                qkv = [
                    tensors.pop(f"{layer}.self_attn.{name}.{kind}")
                    for name in ("q_proj", "k_proj", "v_proj")
                ]
                tensors[f"{layer}.self_attn.qkv_proj.{kind}"] = torch.cat(qkv)
            for name, tensor in parts.items():
                tensors[f"{layer}.mlp.switch_mlp.{name}.{kind}"] = tensor
    if layout == "fused":
        tensors["lm_head_flash.token_map"] = torch.zeros(2, 2, dtype=torch.int32)
    save_file({n: t.contiguous() for n, t in tensors.items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(fields))
    return directory


def maple_logits(source: Path, tokens: np.ndarray) -> np.ndarray:
    """Return the logits of a checkpoint in float64, by the equations of Deepgrove's model."""
    w = {n: t.double() for n, t in load_file(source / "model.safetensors").items()}
    T, H, G = len(tokens), 4, 2

    def norm(x, name):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"]

    angles = torch.arange(T)[:, None] * 10000.0 ** (-torch.arange(0, 32, 2).double() / 32)
    cos, sin = (torch.cat([f(angles)] * 2, dim=-1)[:, None] for f in (torch.cos, torch.sin))

    def rope(x):
        rotated, rest = x[..., :32], x[..., 32:]
        half = torch.cat([-rotated[..., 16:], rotated[..., :16]], dim=-1)
        return torch.cat([rotated * cos + half * sin, rest], dim=-1)

    distance = torch.arange(T)[:, None] - torch.arange(T)
    x = w["model.word_embeddings.weight"][torch.from_numpy(tokens)]
    for i, kind in enumerate(FIELDS["layer_types"]):
        layer, is_local = f"model.layers.{i}", kind == "sliding_attention"
        attention = f"{layer}.self_attn"
        h = norm(x, f"{layer}.input_layernorm")
        q, k, v = (
            (h @ w[f"{attention}.{n}_proj.weight"].T).view(T, heads, D)
            for n, heads in (("q", H), ("k", G), ("v", G))
        )
        q, k = norm(q, f"{attention}.q_norm"), norm(k, f"{attention}.k_norm")
        if is_local:
            q, k = rope(q), rope(k)
        k, v = (each.repeat_interleave(H // G, dim=1) for each in (k, v))
        visible = (distance >= 0) & (distance < (FIELDS["sliding_window"] if is_local else T))
        scores = torch.einsum("thd,shd->hts", q, k) / D**0.5
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        out = torch.einsum("hts,shd->thd", weights, v).reshape(T, H * D)
        x = x + out @ w[f"{attention}.o_proj.weight"].T
        h = norm(x, f"{layer}.post_attention_layernorm")
        chance, chosen = (h @ w[f"{layer}.mlp.gate.weight"].T).softmax(-1).topk(2)
        chance = chance / chance.sum(-1, keepdim=True)
        y = torch.zeros_like(x)
        for t in range(T):
            for c, e in zip(chance[t], chosen[t].tolist(), strict=True):
                gate, up, down = (w[f"{layer}.mlp.experts.{e}.{n}.weight"] for n in EXPERT)
                inner = torch.nn.functional.silu((gate @ h[t]).clamp(max=7.0))
                y[t] += c * (down @ (inner * (up @ h[t]).clamp(-7.0, 7.0)))
        x = x + y
    return (norm(x, "model.norm") @ w["lm_head.weight"].T).numpy()


def test_logits_are_those_of_the_equations_of_maple(tmp_path):
    source = write(tmp_path / "maple", "bfloat16")
    tensors = load_file(source / "model.safetensors")
    for name in tensors:
        if "post_attention_layernorm" in name:  # so that the limits of SwiGLU apply
            tensors[name] = tensors[name] * 16
    save_file(tensors, source / "model.safetensors")
    tokens = np.random.default_rng(1).integers(0, 264, 24)
    packed = import_model(source, tmp_path / "model", "f32", weights="f32")

    logits = Engine(packed, threads=1, kernels=None).logits(tokens, "f32")

    expected = maple_logits(source, tokens)
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("layout", ["bfloat16", "experts", "stacked", "fused"])
def test_experts_are_rows_of_one_matrix_with_the_published_scales(tmp_path, layout):
    lines: list[str] = []
    source = write(tmp_path / "maple", layout)
    packed = import_model(source, tmp_path / "model", report=lines.append)

    assert packed.config.weights == "ternary_row_a16"
    assert ("MLX, 2-bit, scales in BF16; " in lines[-1]) == (layout != "bfloat16")
    expected = matrices()
    for i in range(FIELDS["num_hidden_layers"]):
        ours, layer = f"layers.{i}", f"model.layers.{i}"
        for matrix in EXPERT:
            experts = [expected[f"{layer}.mlp.experts.{e}.{matrix}"].floats for e in range(E)]
            found = stored_floats(packed, f"{ours}.ffn.{matrix}.weight")
            np.testing.assert_array_equal(found, np.concatenate(experts))
        for matrix, module in zip(
            ("q_proj", "k_proj", "v_proj", "out_proj"), ATTENTION, strict=True
        ):
            found = stored_floats(packed, f"{ours}.mixer.{matrix}.weight")
            np.testing.assert_array_equal(found, expected[f"{layer}.self_attn.{module}"].floats)
        router = stored(packed, f"{ours}.ffn.router.weight")
        theirs = floats()[f"{layer}.mlp.gate.weight"].float().numpy()
        np.testing.assert_array_equal(router, theirs)
    verify(packed.path)


def test_configuration(tmp_path):
    config = open_checkpoint(write(tmp_path / "maple", "bfloat16")).config

    assert (config.ffn, config.n_experts, config.n_active_experts, config.d_ff) == ("moe", E, 2, F)
    assert (config.swiglu_limit, config.qk_norm, config.head_size) == (7.0, "before_rope", None)
    assert config.layers == ("window",) * 3 + ("full",) and config.window == 16
    assert (config.window_rope, config.full_rope) == ("half", "none")
    frequencies = 10000.0 ** (-2 * np.arange(16) / 32)  # of half of the head
    np.testing.assert_allclose(config.window_rope_frequencies, frequencies)
    assert not (config.tie_embeddings or config.scale_embedding or config.sub_norm)


def test_missing_keys_have_the_defaults_of_maple(tmp_path):
    source = write(tmp_path / "maple", "bfloat16")
    complete = open_checkpoint(source).config
    keys = ("partial_rotary_factor", "rope_theta", "rms_norm_eps", "norm_topk_prob", "hidden_act")
    edit(source, **dict.fromkeys((*keys, "use_qk_norm", "nope_on_global_attention")))

    assert open_checkpoint(source).config == complete


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_shared_experts": 1}, "num_shared_experts must be null but is 1"),
        ({"first_k_dense_replace": 1}, "first_k_dense_replace must be null but is 1"),
        ({"norm_topk_prob": False}, "norm_topk_prob must be true but is false"),
        ({"nope_on_global_attention": False}, "nope_on_global_attention must be true but is False"),
        ({"use_qk_norm": False}, "use_qk_norm must be true but is False"),
        ({"use_bias": True}, "use_bias must be false but is True"),
        ({"num_experts": None}, "key 'num_experts' is missing"),
        ({"layer_types": None}, "key 'layer_types' is missing"),
        ({"layer_types": None, "sliding_window": None}, "key 'layer_types' is missing"),
        ({"quantization_config": {}}, "num_experts must be null in a model with BitNet .* is 3;"),
        ({"is_bitnet_config": True}, "num_experts must be null in a model with BitNet .* is 3;"),
        ({"num_experts_per_tok": 9}, "n_active_experts must be at most n_experts = 3 but is 9"),
        ({"num_experts": "3"}, "n_experts must be an integer but is '3'"),
        ({"hidden_act": "relu2"}, "hidden_act must be silu with experts but is relu2"),
        ({"num_experts": 4}, "tensor 'model.layers.0.mlp.experts.3.gate_proj.weight' is missing"),
        ({"moe_intermediate_size": 64}, r"gate_proj.weight' must have 64 rows of 256"),
    ],
)
def test_other_experts_are_refused_by_name(tmp_path, changes, message):
    source = write(tmp_path / "maple", "bfloat16")
    edit(source, **changes)

    with pytest.raises(ConfigError, match=message) as raised:
        import_model(source, tmp_path / "model")

    assert "\n" not in str(raised.value)


def test_code_of_a_repository_is_not_run(tmp_path):
    source = write(tmp_path / "maple", "bfloat16")
    (source / "modeling_maple.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")

    import_model(source, tmp_path / "model")

    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "model" / "modeling_maple.py").exists()


def test_row_scales_of_float_experts_survive_as_floats(tmp_path):
    source = write(tmp_path / "maple", "bfloat16")

    packed = import_model(source, tmp_path / "model", weights="f32")

    theirs = load_file(source / "model.safetensors")
    experts = [theirs[f"model.layers.1.mlp.experts.{e}.up_proj.weight"].float() for e in range(E)]
    np.testing.assert_array_equal(
        weights(packed, "layers.1.ffn.up_proj.weight"), torch.cat(experts).numpy()
    )
