"""Mixture of experts against a loop over tokens in float64, its balancing loss and its errors.

Letters: N tokens   C model width   F feed-forward width   E experts   k experts per token
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from yocobit.config import ConfigError, ModelConfig, preset
from yocobit.model import Cache, Decoder
from yocobit.model.experts import MixtureOfExperts, load_balancing_loss
from yocobit.model.quantization import expand_scales, quantize_activations, quantize_weight

E, K_ACTIVE = 6, 2


def config(weights: str = "dense", **changes) -> ModelConfig:
    fields = {"ffn": "moe", "n_experts": E, "n_active_experts": K_ACTIVE, "d_ff": 24}
    return preset("nano").replace(weights=weights, **{**fields, **changes})


def experts_of(weights: str = "dense", **changes) -> MixtureOfExperts:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ffn: MixtureOfExperts = Decoder(config(weights, **changes)).layers[0].ffn
        if not isinstance(ffn.sub_norm, torch.nn.Identity):
            torch.nn.init.uniform_(ffn.sub_norm.weight, 0.5, 1.5)
        return ffn.double()


def inputs(N: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, N // 2, 64, generator=generator, dtype=torch.float64)


def by_token(ffn: MixtureOfExperts, x: torch.Tensor, limit: float | None = None) -> torch.Tensor:
    """Return the output for x (N, C), token by token and expert by expert."""

    def matmul(linear, e: int, row: torch.Tensor) -> torch.Tensor:
        weight = linear.weight
        if linear.kind != "dense":
            integers, scales = quantize_weight(weight, linear.kind)
            weight = integers * expand_scales(scales, weight.shape[1], linear.kind)
        if linear.quantizes_inputs:
            codes, scale = quantize_activations(row)
            row = codes * scale
        M = len(weight) // ffn.n_experts
        return weight[e * M : (e + 1) * M] @ row

    rows = []
    for row in x:
        logits = ffn.router.weight @ row
        chosen = sorted(range(ffn.n_experts), key=lambda e: (-logits[e].item(), e))[: ffn.n_active]
        shares = torch.softmax(logits[chosen], dim=0)
        y = torch.zeros_like(row)
        for share, e in zip(shares, chosen, strict=True):
            gate, up = matmul(ffn.gate_proj, e, row), matmul(ffn.up_proj, e, row)
            if limit is not None:
                gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
            hidden = F.silu(gate) * up
            if not isinstance(ffn.sub_norm, torch.nn.Identity):
                rms = (hidden.square().mean() + ffn.sub_norm.eps).sqrt()
                hidden = hidden / rms * ffn.sub_norm.weight
            y = y + share * matmul(ffn.down_proj, e, hidden)
        rows.append(y)
    return torch.stack(rows)


@pytest.mark.parametrize(
    "weights", ["dense", "ternary", "ternary_row", "ternary_g64", "sign_g128", "ternary_row_a16"]
)
def test_outputs_equal_a_loop_over_tokens(weights):
    ffn, x = experts_of(weights), inputs()

    y = ffn(x)

    assert y.shape == x.shape
    torch.testing.assert_close(y.flatten(0, 1), by_token(ffn, x.flatten(0, 1)))


@pytest.mark.parametrize("changes", [{"sub_norm": False}, {"swiglu_limit": 0.5}], ids=str)
def test_outputs_of_every_option_equal_a_loop_over_tokens(changes):
    ffn, x = experts_of(**changes), inputs()

    expected = by_token(ffn, x.flatten(0, 1), changes.get("swiglu_limit"))

    torch.testing.assert_close(ffn(x).flatten(0, 1), expected)


def test_gradients_equal_those_of_a_loop_over_tokens():
    ffn, x = experts_of(), inputs().requires_grad_()
    leaves = (x, *ffn.parameters())
    upstream = torch.randn_like(x)

    found = torch.autograd.grad(ffn(x), leaves, upstream)
    expected = torch.autograd.grad(by_token(ffn, x.flatten(0, 1)), leaves, upstream.flatten(0, 1))

    torch.testing.assert_close(found, expected)


def test_outputs_equal_those_of_transformers():
    ffn, x = experts_of(sub_norm=False), inputs()
    settings = Qwen3MoeConfig(
        hidden_size=64,
        moe_intermediate_size=24,
        num_experts=E,
        num_experts_per_tok=K_ACTIVE,
        norm_topk_prob=True,
        experts_implementation="eager",
    )
    theirs = Qwen3MoeSparseMoeBlock(settings).double()
    gate, up, down = (
        linear.weight.unflatten(0, (E, -1))
        for linear in (ffn.gate_proj, ffn.up_proj, ffn.down_proj)
    )
    weights = {
        "gate.weight": ffn.router.weight,
        "experts.gate_up_proj": torch.cat([gate, up], dim=1),
        "experts.down_proj": down,
    }
    theirs.load_state_dict(weights)

    # Their softmax is in float32.
    torch.testing.assert_close(ffn(x), theirs(x), rtol=1e-6, atol=1e-6)


def test_no_token_is_dropped_if_all_choose_the_same_experts():
    ffn, x = experts_of(), inputs()
    torch.nn.init.zeros_(ffn.router.weight)  # equal logits: the experts of the lowest index

    torch.testing.assert_close(ffn(x).flatten(0, 1), by_token(ffn, x.flatten(0, 1)))


def test_equal_logits_are_ordered_by_expert():
    ffn = experts_of()
    torch.nn.init.zeros_(ffn.router.weight)
    ffn.router.weight.data[4] = 1.0
    x = torch.ones(1, 1, 64, dtype=torch.float64)  # logits 0 0 0 0 64 0
    chosen = []
    apply = ffn._apply_experts
    ffn._apply_experts = lambda rows, experts: chosen.append(experts) or apply(rows, experts)

    ffn(x)

    assert chosen[0].tolist() == [[4, 0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_router_computes_in_float32(dtype):
    ffn, x = experts_of().to(dtype), inputs().to(dtype)

    y = ffn(x)

    assert y.dtype == dtype and y.isfinite().all()
    logits = []
    sort = torch.Tensor.sort
    torch.Tensor.sort = lambda self, *a, **k: logits.append(self) or sort(self, *a, **k)
    try:
        ffn(x)
    finally:
        torch.Tensor.sort = sort
    assert logits[0].dtype == torch.float32


def test_balancing_loss_is_that_of_switch_transformers():
    logits = torch.randn(50, E, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    experts = logits.topk(K_ACTIVE).indices
    exponentials = np.exp(logits.numpy())
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    shares = [(experts == e).sum() / experts.numel() for e in range(E)]

    found = load_balancing_loss(logits, experts)

    expected = E * sum(shares[e] * probabilities[:, e].mean() for e in range(E))
    assert float(found) == pytest.approx(float(expected), rel=1e-7)  # shares are float32


def test_balancing_loss_is_1_if_balanced_and_has_a_gradient_towards_unused_experts():
    logits = torch.zeros(E, E, requires_grad=True)

    balanced = load_balancing_loss(logits, torch.arange(E)[:, None])
    load_balancing_loss(logits, torch.zeros(E, 1, dtype=torch.int64)).backward()

    assert balanced.item() == pytest.approx(1)
    assert (logits.grad[:, 0] > 0).all() and (logits.grad[:, 1:] < 0).all()


def test_a_step_equals_a_forward_pass():
    torch.manual_seed(0)
    model = Decoder(config("ternary_g128")).double().eval()
    tokens = torch.arange(30)[None] % 500
    with torch.no_grad():
        expected, cache = model(tokens), Cache()
        stepped = torch.cat([model.step(tokens[:, t : t + 1], cache) for t in range(30)], dim=1)

    torch.testing.assert_close(stepped, expected)


def test_adapters_on_experts_are_rejected_in_one_line():
    ffn = experts_of()
    ffn.up_proj.register_forward_hook(lambda *_: None)

    with pytest.raises(ConfigError, match=r"^experts must be .* but have adapters or hooks; "):
        ffn(inputs())


def test_export_of_experts_is_rejected_in_one_line():
    with pytest.raises(ConfigError, match=r"^export: ffn must not be"):
        torch.export.export(experts_of(), (inputs(),), strict=False)
