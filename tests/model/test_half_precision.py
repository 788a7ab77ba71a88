"""bfloat16 and float16: all stacks and weight kinds train, extend and stay close to float32."""

from __future__ import annotations

import contextlib
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from yocobit.config import WeightKind, preset
from yocobit.model import Cache, Decoder
from yocobit.model.bitlinear import BitLinear
from yocobit.model.feed_forward import FeedForward
from yocobit.model.mixers.cross import CrossAttention
from yocobit.model.mixers.retention import GatedRetention
from yocobit.model.norm import RMSNorm
from yocobit.model.ops import dispatch
from yocobit.model.quantization import fake_quantize
from yocobit.model.rope import rope

B, T, V = 2, 70, 61
STACKS = {
    "retention-cross": ("retention", "retention", "cross", "cross"),
    "window-gmu": ("window", "cross", "gmu"),
    "mixed-gmu": ("window", "full", "gate", "retention", "cross", "gmu"),
    "full": ("full", "full"),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "swiglu": {},
    "relu2": {"ffn": "relu2", "sub_norm": False, "retention_rope": "half", "window_rope": "none"},
    "int4": {"shared_kv": "int4", "cross_attention": "index", "cross_positions": 256},
}
COMMON = ("mixed-gmu", "swiglu")
# Each block rounds its input, its two outputs and the two sums, and the FFN and the mixer round up
# to five intermediate results: relative errors of eps / 2 each, that add up at most.
ROUNDINGS = 15


# The other kinds of weights-only quantisation take the path of ternary_g128.
WEIGHTS = ("ternary", "ternary_row", "sign", "ternary_g128", "dense")
# All kinds of weights in one stack and all variants with one kind; the other combinations are slow.
MODELS = [
    pytest.param(
        STACKS[stack],
        weights,
        VARIANTS[variant],
        id=f"{stack}-{weights}-{variant}",
        marks=[pytest.mark.slow] * (weights != "ternary" and (stack, variant) != COMMON),
    )
    for stack, weights, variant in product(STACKS, WEIGHTS, VARIANTS)
]


@pytest.mark.parametrize(("stack", "weights", "variant"), MODELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_train_and_extend_close_to_float32(stack, weights, variant, dtype):
    model = _model(layers=stack, weights=weights, **variant).to(dtype)
    exact = Decoder(model.config)
    exact.load_state_dict(model.state_dict())

    logits, gradients = _train(model)
    expected, expected_gradients = _train(exact)

    assert logits.dtype == dtype
    assert _distance(logits, expected) < ROUNDINGS * len(stack) * torch.finfo(dtype).eps / 2
    assert all(gradient.dtype == dtype for gradient in gradients)
    assert all(gradient.isfinite().all() for gradient in gradients)
    # Of weights that are rounded to other codes where an activation is.
    bound = 4 * ROUNDINGS * len(stack) * torch.finfo(dtype).eps / 2
    assert _distance(_flat(gradients), _flat(expected_gradients)) < bound
    assert _distance(_steps(model), logits) < ROUNDINGS * len(stack) * torch.finfo(dtype).eps / 2


@pytest.mark.parametrize(("stack", "weights", "variant"), MODELS)
def test_autocast_trains_and_extends_close_to_float32(stack, weights, variant):
    model = _model(layers=stack, weights=weights, **variant)
    expected, expected_gradients = _train(model)

    with torch.autocast("cpu", torch.bfloat16):
        logits, gradients = _train(model)
        stepped = _steps(model)

    bound = ROUNDINGS * len(stack) * torch.finfo(torch.bfloat16).eps / 2
    assert _distance(logits, expected) < bound
    assert _distance(stepped, expected) < bound
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    assert _distance(_flat(gradients), _flat(expected_gradients)) < 4 * bound


@pytest.mark.parametrize("weights", ["ternary", "sign", "ternary_row"])
@pytest.mark.parametrize("kernels", ["native", "pytorch"])
def test_autocast_changes_no_bit_of_a_quantised_projection(weights, kernels):
    linear, x = _linear(weights), torch.randn(3, 5, 64, requires_grad=True)
    name = dispatch.kernels() if kernels == "native" else "pytorch"
    with dispatch.use_kernels(name):
        expected = [linear(x), *torch.autograd.grad(linear(x).sum(), (x, linear.weight))]
        with torch.autocast("cpu", torch.bfloat16):
            actual = [linear(x), *torch.autograd.grad(linear(x).sum(), (x, linear.weight))]

    for y, reference in zip(actual, expected, strict=True):
        assert torch.equal(y, reference)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_quantised_projection_rounds_its_exact_result_once(dtype):
    linear, x = _linear("ternary").to(dtype), torch.randn(3, 5, 64).to(dtype)
    exact = _linear("ternary")
    exact.load_state_dict(linear.state_dict())

    assert torch.equal(linear(x), exact(x.float()).to(dtype))


@pytest.mark.parametrize("kind", ["interleaved", "half"])
@pytest.mark.parametrize("start", [3, torch.arange(3, 10)[None]])
def test_rope_rotates_half_precision_in_float32(kind, start):
    x = torch.randn(1, 2, 7, 16).bfloat16()

    y = rope(x, start, kind, theta=10000.0)

    assert torch.equal(y, rope(x.float(), start, kind, theta=10000.0).bfloat16())


def test_rms_norm_of_half_precision_has_float32_statistics():
    norm, x = RMSNorm(64, eps=1e-5).bfloat16(), 300 * torch.randn(3, 64).bfloat16()
    torch.nn.init.normal_(norm.weight)
    exact = RMSNorm(64, eps=1e-5)
    exact.load_state_dict(norm.state_dict())

    assert torch.equal(norm(x), exact(x.float()).bfloat16())


def test_fake_quantize_of_half_precision_rounds_in_float32():
    x = torch.randn(3, 64).bfloat16()

    assert torch.equal(fake_quantize(x, 127), fake_quantize(x.float(), 127).bfloat16())


@pytest.mark.parametrize("context", ["bfloat16", "autocast"])
def test_retention_state_is_float32(context):
    is_half = context == "bfloat16"
    mixer = GatedRetention(_config(layers=("retention",))).to(
        torch.bfloat16 if is_half else torch.float32
    )
    x = torch.randn(B, 9, 64).to(torch.bfloat16 if is_half else torch.float32)

    with contextlib.nullcontext() if is_half else torch.autocast("cpu", torch.bfloat16):
        _, state, _ = mixer(x, 0, None)
        _, state, _ = mixer(x[:, :1], 9, state)

    assert state.dtype == torch.float32


def test_retention_of_4096_bfloat16_tokens_keeps_the_precision_of_its_inputs():
    torch.manual_seed(0)
    mixer = GatedRetention(_config(layers=("retention",), weights="dense")).bfloat16()
    exact = GatedRetention(_config(layers=("retention",), weights="dense"))
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, mean=0.0, std=0.12)
    exact.load_state_dict(mixer.state_dict())
    x = torch.randn(1, 4096, 64).bfloat16()

    with torch.no_grad():
        _, state, _ = mixer(x, 0, None)
        _, expected, _ = exact(x.float(), 0, None)

    # k and v are rounded twice each; a decay in bfloat16 would be off by 38 %.
    assert _distance(state, expected) < 4 * torch.finfo(torch.bfloat16).eps / 2


def test_squared_relu_does_not_overflow_in_float16():
    torch.manual_seed(0)
    ffn = FeedForward(_config(layers=("full",), ffn="relu2", weights="dense")).half()
    for parameter in ffn.parameters():
        torch.nn.init.normal_(parameter, std=0.3)

    y = ffn(torch.full((1, 1, 64), 200.0).half())

    assert y.isfinite().all()


def test_index_of_half_precision_keys_selects_the_positions_of_float32_keys():
    config = _config(layers=("full", "cross"), cross_attention="index", cross_positions=256)
    q, k = torch.randn(1, 4, 700, 16).bfloat16(), torch.randn(1, 2, 700, 16).bfloat16()
    q[..., 0], k[..., 0] = 1.0, 1e5  # beyond float16, which stores bounds
    cross = CrossAttention(config)

    assert torch.equal(cross._select(q, k, None), cross._select(q.float(), k.float(), None))


def _config(**changes):
    return preset("nano").replace(vocab_size=V, window=16, **changes)


def _model(**changes) -> Decoder:
    torch.manual_seed(0)
    return Decoder(_config(**changes))


def _linear(kind: WeightKind) -> BitLinear:
    torch.manual_seed(0)
    linear = BitLinear(64, 40, kind)
    torch.nn.init.normal_(linear.weight)
    return linear


def _tokens() -> Tensor:
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(2))


def _train(model: Decoder) -> tuple[Tensor, list[Tensor]]:
    """Return logits (B, T, V) and the gradients of one training step."""
    tokens = _tokens()
    model.zero_grad()
    logits = model(tokens)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
    loss.backward()
    return logits.detach(), [p.grad for p in model.parameters() if p.grad is not None]


@torch.no_grad()
def _steps(model: Decoder) -> Tensor:
    cache, tokens = Cache(), _tokens()
    parts = tokens.split((50, 1, 1, 18), dim=1)
    return torch.cat([model.step(part, cache) for part in parts], dim=1)


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.float().flatten() for tensor in tensors])


def _distance(actual: Tensor, expected: Tensor) -> float:
    """Return the relative distance |actual - expected| / |expected| in the Euclidean norm."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())
