"""The whole model and its mixers: shapes, splits into calls, causality, positions, gradients.

tests/model/test_golden.py compares values with other implementations.

Letters: B batch   T positions   S cached positions   C model width   H heads   G KV heads
         D head size   W window
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from yocobit.config import ModelConfig, preset
from yocobit.mixers import FEED_FORWARDS
from yocobit.model import Cache, Decoder
from yocobit.model.attention import attention
from yocobit.model.feed_forward import FeedForward
from yocobit.model.mixers.cross import CrossAttention
from yocobit.model.rope import rope

B, T, W = 2, 23, 5

STACKS = {
    "retention-cross": ("retention", "retention", "cross", "cross"),
    "window-cross": ("window", "window", "cross"),
    "mixed-cross": ("retention", "window", "full", "cross"),
    "retention-gmu": ("window", "retention", "cross", "gmu"),
    "window-gmu": ("window", "gmu", "cross", "gmu"),
    "full": ("full", "full"),
    "retention": ("retention", "retention"),
    "gate-cross": ("gate", "window", "cross"),
    "gate-gmu": ("window", "gate", "cross", "gmu"),
}
WEIGHTS = ("ternary", "sign", "dense")


@pytest.fixture(params=STACKS)
def layers(request) -> tuple[str, ...]:
    """Each kind of stack, decoder-decoder and plain."""
    return STACKS[request.param]


@pytest.fixture(params=WEIGHTS)
def weights(request) -> str:
    return request.param


def test_3b_preset_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = Decoder(preset("3b"))

    assert model.n_parameters(embedding=False) == 2_829_133_824
    assert model.n_parameters() == 2_829_133_824 + 2 * 100288 * 3072


def test_small_preset_has_about_100m_parameters():
    with torch.device("meta"):
        model = Decoder(preset("small"))

    assert 90e6 < model.n_parameters() < 150e6


def test_tiny_preset_has_the_parameters_of_its_layers():
    C, F, V, H, shared = 256, 768, 4096, 4, 128  # shared: the width of K, and of V
    ffn = 3 * C * F + F  # with its extra norm
    norms = 3 * C  # before the mixer, before its output projection, before the ffn
    retention = 5 * C * C + H * C + ffn + norms
    cross = 2 * C * C + ffn + norms
    shared_kv = 2 * C * shared + C

    model = Decoder(preset("tiny"))

    assert model.n_parameters(embedding=False) == 3 * retention + 3 * cross + shared_kv + C
    assert model.n_parameters() - model.n_parameters(embedding=False) == 2 * V * C


def test_tied_embedding_and_head_are_one_parameter():
    model = _model(tie_embeddings=True)

    assert model.head.weight is model.embedding.weight
    assert model.n_parameters() == model.n_parameters(embedding=False) + model.head.weight.numel()


@pytest.mark.parametrize(
    ("weights", "prefilled"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] * (case[0] != "ternary" and case[1] != W))
        for case in product(WEIGHTS, (0, 1, W - 1, W, 16, T - 1))
    ],
)
def test_prefill_then_steps_equals_forward(layers, weights, prefilled):
    model, tokens, cache = _model(layers=layers, weights=weights), _tokens(), Cache()

    if prefilled:
        model.prefill(tokens[:, :prefilled], cache)
    stepped = [model.step(token, cache) for token in tokens[:, prefilled:].split(1, dim=1)]

    # float64: only the order of summation differs, and no rounding to int8 was near a tie.
    torch.testing.assert_close(torch.cat(stepped, dim=1), model(tokens)[:, prefilled:])
    assert cache.position == T


@pytest.mark.parametrize("pieces", [(7, 1, 1, 14), (2, 20, 1), (1, 3, 6, 13)])
def test_steps_of_any_length_equal_forward(layers, weights, pieces):
    model, tokens, cache = _model(layers=layers, weights=weights), _tokens(), Cache()

    stepped = [model.step(piece, cache) for piece in tokens.split(pieces, dim=1)]

    torch.testing.assert_close(torch.cat(stepped, dim=1), model(tokens))


@pytest.mark.parametrize("shared_kv", ["int8", "int4"])
def test_steps_over_a_rounded_shared_cache_equal_forward(shared_kv):
    model, tokens, cache = _model(shared_kv=shared_kv), _tokens(), Cache()

    model.prefill(tokens[:, :9], cache)
    stepped = [model.step(piece, cache) for piece in tokens[:, 9:].split((1, 5, 8), dim=1)]

    torch.testing.assert_close(torch.cat(stepped, dim=1), model(tokens)[:, 9:])


def test_logits_of_a_batch_equal_those_of_its_sequences_alone(layers, weights):
    model, tokens = _model(layers=layers, weights=weights), _tokens()

    alone = [model(sequence[None]) for sequence in tokens]

    torch.testing.assert_close(torch.cat(alone), model(tokens))


@pytest.mark.parametrize("t", [1, 12, T - 1])
def test_later_tokens_do_not_change_earlier_logits(layers, weights, t):
    model, tokens = _model(layers=layers, weights=weights), _tokens()
    changed = tokens.clone()
    changed[:, t:] = (tokens[:, t:] + 1) % model.config.vocab_size

    before, after = model(tokens), model(changed)

    torch.testing.assert_close(after[:, :t], before[:, :t])
    assert ((after - before)[:, t:].abs().amax(dim=-1) > 1e-3).all()


@pytest.mark.parametrize("first", [False, True])
def test_documents_in_one_sequence_equal_each_document_alone(layers, first):
    model, tokens = _model(layers=layers, weights="dense"), _tokens()
    resets = torch.zeros(B, T, dtype=torch.bool)
    resets[:, 0] = first
    resets[1, [1, 9]] = True

    hidden = model.hidden(tokens, resets)

    for row, start, end in [(0, 0, T), (1, 0, 1), (1, 1, 9), (1, 9, T)]:
        alone = model.hidden(tokens[row : row + 1, start:end])
        # Positions within a document are relative; only rounding depends on where it starts.
        torch.testing.assert_close(hidden[row : row + 1, start:end], alone, rtol=0, atol=1e-12)


def test_resets_at_first_positions_change_no_bit(layers, weights):
    model, tokens = _model(layers=layers, weights=weights), _tokens()
    resets = torch.zeros(B, T, dtype=torch.bool)
    resets[:, 0] = True

    assert torch.equal(model.hidden(tokens, resets), model.hidden(tokens))


def test_gradients_of_a_document_do_not_depend_on_other_documents(layers):
    model, tokens = _model(layers=layers, weights="dense"), _tokens()
    resets = torch.zeros(B, T, dtype=torch.bool)
    resets[:, 9] = True

    embedded = model.embedding.weight.requires_grad_()
    (grad,) = torch.autograd.grad(model.hidden(tokens, resets)[:, 9:].square().sum(), embedded)

    alone = model.hidden(tokens[:, 9:]).square().sum()
    (expected,) = torch.autograd.grad(alone, embedded)
    torch.testing.assert_close(grad, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("p", [0, 6])
@pytest.mark.parametrize("window", [1, W, T - 1, T, T + 1])
def test_window_layer_attends_to_the_last_positions_up_to_its_size(window, p):
    model, tokens = _model(layers=("window",), window=window), _tokens()
    changed = tokens.clone()
    changed[:, p] = (tokens[:, p] + 1) % model.config.vocab_size

    difference = (model(changed) - model(tokens)).abs().amax(dim=(0, 2))

    assert (difference > 1e-6).nonzero().flatten().tolist() == list(range(p, min(p + window, T)))


@pytest.mark.parametrize("mixer", ["retention", "full"])
def test_retention_and_full_layers_depend_on_every_earlier_position(mixer):
    model, tokens = _model(layers=(mixer,)), _tokens()
    changed = tokens.clone()
    changed[:, 0] = (tokens[:, 0] + 1) % model.config.vocab_size

    difference = (model(changed) - model(tokens)).abs().amax(dim=(0, 2))

    assert (difference > 1e-6).all()


def test_prefill_runs_the_self_decoder_once_and_the_cross_decoder_never():
    model, cache = _model(), Cache()
    calls = _count_calls(model)

    model.prefill(_tokens(), cache)

    assert calls == {"self": 2, "shared_kv": 1, "cross": 0, "norm": 0, "head": 0}


def test_step_runs_the_cross_decoder_on_its_own_positions_only():
    model, tokens, cache = _model(), _tokens(), Cache()
    lengths = []
    model.layers[-1].register_forward_hook(lambda _m, args, _y: lengths.append(args[0].shape[1]))

    model.prefill(tokens[:, :-1], cache)
    model.step(tokens[:, -1:], cache)

    assert lengths == [1]


def test_shared_keys_and_values_are_computed_once_for_all_cross_layers():
    model = _model(layers=("retention", "cross", "cross", "cross"))
    calls = _count_calls(model)

    model(_tokens())

    assert (calls["shared_kv"], calls["cross"]) == (1, 3)


def test_only_shared_and_full_caches_grow_with_the_sequence():
    model, cache = _model(layers=STACKS["mixed-cross"]), Cache()
    G, D = model.config.n_kv_heads, model.config.head_dim
    G_self, D_self = model.config.n_self_kv_heads, model.config.self_head_dim

    model.prefill(_tokens(), cache)

    retention, window, full = cache.layers
    assert retention.shape == (B, model.config.n_self_heads, D_self, D_self)
    assert [x.shape for x in window] == [(B, G_self, W - 1, D_self)] * 2
    assert [x.shape for x in full] == [(B, G, T, D)] * 2
    assert [x.shape for x in cache.shared] == [(B, G, T, D)] * 2


@pytest.mark.parametrize("S, length, window", [(9, 9, None), (9, 4, None), (9, 9, 3), (9, 4, 3)])
@pytest.mark.parametrize("H, G", [(4, 4), (4, 2), (4, 1)])
def test_attention_equals_softmax_over_visible_positions(H, G, S, length, window):
    D = 8
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(B, H, length, D, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, B, G, S, D, generator=generator, dtype=torch.float64)

    y = attention(q, k, v, window)

    expected = _softmax_attention(q.numpy(), k.numpy(), v.numpy(), window or S)
    np.testing.assert_allclose(y.unflatten(-1, (H, D)), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("start", [0, 1, 1000003])
@pytest.mark.parametrize("kind", ["interleaved", "half"])
def test_rope_equals_multiplication_by_complex_numbers(kind, start):
    x = torch.randn(B, 3, 7, 16, generator=torch.Generator().manual_seed(0)).double()

    y = rope(x, start, kind, theta=10000.0)

    # Angles reach 1e6: their float64 rounding is 1e-10.
    np.testing.assert_allclose(y, _complex_rope(x.numpy(), start, kind), rtol=0, atol=2e-9)


@pytest.mark.parametrize("kind", ["interleaved", "half"])
def test_rope_angles_are_exact_at_large_positions_in_float32(kind):
    x = torch.randn(B, 3, 7, 16, generator=torch.Generator().manual_seed(0))

    y = rope(x, 1000003, kind, theta=10000.0)

    # |x| < 6, and four float32 roundings of values up to that. An angle in float32 is off by 0.03.
    expected = _complex_rope(x.double().numpy(), 1000003, kind)
    np.testing.assert_allclose(y, expected, rtol=0, atol=4 * 6 * 2**-24)


@pytest.mark.parametrize("kind", ["interleaved", "half"])
def test_rope_gradients_equal_finite_differences(kind):
    x = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0)).double()

    assert torch.autograd.gradcheck(lambda x: rope(x, 7, kind, 100.0), x.requires_grad_())


@pytest.mark.parametrize("kind", ["interleaved", "half"])
def test_rope_accepts_inputs_and_gradients_of_any_strides(kind):
    x = torch.randn(B, 3, 16, 7).mT.requires_grad_()
    upstream = torch.randn(B, 3, 16, 7).mT

    y = rope(x, 5, kind, theta=10000.0)
    (grad,) = torch.autograd.grad(y, x, upstream)

    assert torch.equal(y, rope(x.contiguous(), 5, kind, theta=10000.0))
    y = rope(x, 5, kind, theta=10000.0)
    assert torch.equal(grad, torch.autograd.grad(y, x, upstream.contiguous())[0])


def test_rope_kind_none_changes_nothing():
    x = torch.randn(B, 3, 7, 16)

    assert torch.equal(rope(x, 5, "none", theta=10000.0), x)


@pytest.mark.parametrize("mixer", ["retention", "window", "full", "cross"])
def test_rope_kind_of_a_mixer_does_not_affect_others(mixer):
    layers = ("retention", "cross") if mixer == "cross" else (mixer,)
    fields = ("retention_rope", "window_rope", "full_rope", "cross_rope")
    reference, tokens = _model(layers=layers), _tokens()

    changed = set()
    for field in fields:
        for kind in ("half", "none"):
            model = _model(layers=layers, **{field: kind})
            if not torch.equal(model(tokens), reference(tokens)):
                changed.add((field, kind))

    expected = {"retention_rope"} if mixer == "cross" else set()
    expected.add(f"{mixer}_rope")
    assert changed == {(field, kind) for field in expected for kind in ("half", "none")}


@pytest.mark.parametrize("sub_norm", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in FEED_FORWARDS if kind != "moe"])
def test_feed_forward_equals_its_formula(kind, sub_norm):
    config = _config(ffn=kind, weights="dense", sub_norm=sub_norm)
    ffn = FeedForward(config).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in ffn.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    x = torch.randn(B, T, config.d_model, generator=generator, dtype=torch.float64)

    y = ffn(x).detach()

    parameters = {name: p.detach().numpy() for name, p in ffn.named_parameters()}
    expected = _feed_forward(x.numpy(), parameters, kind, config.norm_eps)
    np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("ffn", FEED_FORWARDS)
def test_gradients_reach_every_parameter(layers, weights, ffn):
    experts = {"n_experts": 4, "n_active_experts": 2} if ffn == "moe" else {}
    model, tokens = _model(layers=layers, weights=weights, ffn=ffn, **experts), _tokens()
    model.requires_grad_(True)

    logits = model(tokens[:, :-1])
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()

    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any()
    ]
    assert without == []


@pytest.mark.parametrize("ffn", ["swiglu", "geglu", "relu2"])
def test_sub_norm_normalises_inputs_of_output_projections(layers, ffn):
    model = _model(layers=layers, ffn=ffn, sub_norm=True)
    mean_squares = []
    for name, module in model.named_modules():
        if name.endswith(("out_proj", "down_proj")):
            module.register_forward_pre_hook(
                lambda _module, args: mean_squares.append(args[0].square().mean(dim=-1))
            )

    model(_tokens())

    n_mixers = len(layers) - layers.count("gate")  # which has no output projection
    assert len(mean_squares) == n_mixers + len(layers)
    # 1e-2: norm_eps compared with the mean square of a small input.
    assert all(((x > 0.99) & (x <= 1)).all() for x in mean_squares)


def test_model_without_sub_norm_has_only_the_norms_of_the_blocks(layers):
    model = _model(layers=layers, sub_norm=False)

    norms = {name.rsplit(".", 1)[-1] for name, m in model.named_modules() if _is_norm(m)}

    assert norms == {"mixer_norm", "ffn_norm", "norm"}


def test_same_seed_initialises_the_same_logits():
    assert torch.equal(_model()(_tokens()), _model()(_tokens()))


def _config(**changes) -> ModelConfig:
    fields = {"vocab_size": 61, "layers": STACKS["retention-cross"], "window": W} | changes
    return preset("nano").replace(**fields)


def _model(**changes) -> Decoder:
    """Return a float64 model, the same each time, with norms that are not all ones."""
    torch.manual_seed(0)
    model = Decoder(_config(**changes)).double()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and "sub_norm" not in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.1, generator=generator)
    return model.requires_grad_(False)


def _tokens() -> Tensor:
    return torch.randint(61, (B, T), generator=torch.Generator().manual_seed(2))


def _count_calls(model: Decoder) -> dict[str, int]:
    """Return counts of calls, by part of the model, that increase as it runs."""
    calls = {"self": 0, "shared_kv": 0, "cross": 0, "norm": 0, "head": 0}
    parts = [
        ("cross" if isinstance(layer.mixer, CrossAttention) else "self", layer)
        for layer in model.layers
    ]
    parts += [("shared_kv", model.shared_kv), ("norm", model.norm), ("head", model.head)]
    for part, module in parts:

        def count(_module, _args, _result, part=part):
            calls[part] += 1

        module.register_forward_hook(count)
    return calls


def _is_norm(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.RMSNorm)


def _softmax_attention(q, k, v, window):
    """Return (B, T, H, D) of queries that are the last T of S positions, one query at a time."""
    _, H, length, D = q.shape
    G, S = k.shape[1:3]
    y = np.zeros((B, length, H, D))
    for b, h, t in np.ndindex(B, H, length):
        g = h * G // H
        seen = slice(max(0, S - length + t - window + 1), S - length + t + 1)
        scores = k[b, g, seen] @ q[b, h, t] / np.sqrt(D)
        probabilities = np.exp(scores - scores.max())
        y[b, t, h] = probabilities / probabilities.sum() @ v[b, g, seen]
    return y


def _complex_rope(x, start, kind):
    """Rotate each pair of x (B, H, T, D), read as a complex number, by position times frequency."""
    D = x.shape[-1]
    positions = np.arange(start, start + x.shape[2], dtype=np.float64)
    if kind == "interleaved":
        rotations = np.exp(1j * np.outer(positions, 10000.0 ** -np.linspace(0, 1, D // 2)))
        pairs = (x[..., 0::2] + 1j * x[..., 1::2]) * rotations
        return np.stack((pairs.real, pairs.imag), axis=-1).reshape(x.shape)
    rotations = np.exp(1j * np.outer(positions, 10000.0 ** -(np.arange(0, D, 2) / D)))
    pairs = (x[..., : D // 2] + 1j * x[..., D // 2 :]) * rotations
    return np.concatenate((pairs.real, pairs.imag), axis=-1)


def _feed_forward(x, parameters, kind, eps):
    up = x @ parameters["up_proj.weight"].T
    if kind == "sign":
        return np.where(up > 0, 1.0, -1.0) @ parameters["down_proj.weight"].T
    gate = x @ parameters["gate_proj.weight"].T
    activated = {
        "swiglu": gate / (1 + np.exp(-gate)),
        "geglu": gate / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))),
        "relu2": np.maximum(gate, 0) ** 2,
    }
    hidden = activated[kind] * up
    if "sub_norm.weight" in parameters:
        rms = np.sqrt((hidden**2).mean(axis=-1, keepdims=True) + eps)
        hidden = hidden / rms * parameters["sub_norm.weight"]
    return hidden @ parameters["down_proj.weight"].T
