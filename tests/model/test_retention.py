"""Gated retention: its three forms against the recurrence in NumPy, and its gradients.

Letters: B batch   H heads   T positions   D key size   E value size
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from yocobit.config import ModelConfig
from yocobit.model.mixers import retention
from yocobit.model.mixers.retention import GatedRetention

B, H, D, E = 2, 3, 8, 5

FORMS = {
    "recurrent": retention.recurrent,
    "parallel": retention.parallel,
    "chunkwise": retention.chunkwise,
    "chunkwise-by-1": lambda *args: retention.chunkwise(*args, chunk=1),
    "chunkwise-by-6": lambda *args: retention.chunkwise(*args, chunk=6),
}


@pytest.fixture(params=FORMS)
def form(request):
    """Each of the equal ways to compute gated retention."""
    return FORMS[request.param]


@pytest.mark.parametrize("strength", [1e-4, 0.1, 30.0])
@pytest.mark.parametrize("T", [1, 5, 6, 63, 64, 65, 131])
def test_form_equals_the_recurrence_in_numpy(form, T, strength):
    q, k, v, log_decay, state = _random_inputs(T, strength)
    expected = _recurrence(*(x.numpy() for x in (q, k, v, log_decay, state)))

    actual = form(q, k, v, log_decay, state)

    for tensor, array in zip(actual, expected, strict=True):
        # An exponent near -1000 (chunk x strength) has an absolute error of 1e-13 in float64.
        np.testing.assert_allclose(tensor, array, rtol=0, atol=1e-11)


@pytest.mark.parametrize("T", [1, 64, 70])
def test_form_without_a_state_starts_from_zeros(form, T):
    *inputs, state = _random_inputs(T)

    actual = form(*inputs)

    torch.testing.assert_close(actual, form(*inputs, torch.zeros_like(state)))


@pytest.mark.parametrize("n", [1, 6, 40, 64, 69])
def test_form_in_two_calls_equals_one_call(form, n):
    *inputs, state = _random_inputs(T=70)
    outputs, final_state = form(*inputs, state)

    first, middle_state = form(*(x[:, :, :n] for x in inputs), state)
    second, state = form(*(x[:, :, n:] for x in inputs), middle_state)

    torch.testing.assert_close(torch.cat((first, second), dim=2), outputs)
    torch.testing.assert_close(state, final_state)


@pytest.mark.parametrize("t", [1, 6, 64])
def test_future_positions_do_not_reach_outputs(form, t):
    q, k, v, log_decay, state = (x.requires_grad_() for x in _random_inputs(T=70))

    outputs, _ = form(q, k, v, log_decay, state)
    gradients = torch.autograd.grad(outputs[:, :, :t].square().sum(), (q, k, v, log_decay))

    assert all((gradient[:, :, t:] == 0).all() for gradient in gradients)
    assert all((gradient[:, :, :t] != 0).any() for gradient in gradients)


def test_log_decay_of_minus_infinity_resets_the_state(form):
    t = 40
    q, k, v, log_decay, state = _random_inputs(T=70)
    log_decay[:, :, t] = -torch.inf

    outputs, final_state = form(q, k, v, log_decay, state)
    fresh = form(*(x[:, :, t:] for x in (q, k, v)), log_decay[:, :, t:].nan_to_num(neginf=0.0))

    assert outputs.isfinite().all()
    # The clamp of log_decay costs the later ones 1e-13, their distance from -1000 in float64.
    torch.testing.assert_close((outputs[:, :, t:], final_state), fresh, rtol=0, atol=1e-11)


def test_log_decay_of_zero_sums_up(form):
    q, k, v, _, state = _random_inputs(T=70)

    _, final_state = form(q, k, v, torch.zeros(B, H, 70, dtype=torch.float64), state)

    torch.testing.assert_close(final_state, state + k.mT @ v / math.sqrt(D))


def test_form_keeps_float32(form):
    inputs = [x.float() for x in _random_inputs(T=7)]

    outputs, state = form(*inputs)

    assert (outputs.dtype, state.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize("T", [4, 5])
def test_chunkwise_gradients_equal_finite_differences(T):
    generator = torch.Generator().manual_seed(T)
    shapes = ((1, 1, T, 2), (1, 1, T, 2), (1, 1, T, 3), (1, 1, T), (1, 1, 2, 3))
    q, k, v, gate, state = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    inputs = [x.requires_grad_() for x in (q, k, v, -gate.abs(), state)]

    assert torch.autograd.gradcheck(lambda *args: retention.chunkwise(*args, chunk=2), inputs)


@pytest.mark.parametrize("log_decay", [-1e-3, -1.0, -25.0])
def test_form_gradients_equal_those_of_the_recurrence(form, log_decay):
    # -25: the gradient of log_decay is 1e-11 of the others, and must not drown in their rounding.
    q, k, v, _, state = _random_inputs(T=70)
    decays = torch.full((B, H, 70), log_decay, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (q, k, v, decays, state)]

    expected = _gradients(retention.recurrent, inputs)
    actual = _gradients(form, inputs)

    for gradient, reference in zip(actual, expected, strict=True):
        error = (gradient - reference).abs().max()
        assert error <= 1e-10 * reference.abs().max()  # the bound of the golden files


def test_form_gradients_equal_those_of_the_recurrence_at_resets(form):
    q, k, v, log_decay, state = _random_inputs(T=70)
    log_decay[:, :, [0, 40, 41, 64]] = -torch.inf
    inputs = [x.requires_grad_() for x in (q, k, v, log_decay, state)]

    expected = _gradients(retention.recurrent, inputs)
    actual = _gradients(form, inputs)

    for gradient, reference in zip(actual, expected, strict=True):
        # The clamp costs an exponent 1e-13, its distance from -1000 in float64.
        assert (gradient - reference).abs().max() <= 1e-12 * reference.abs().max()


def test_chunkwise_saves_its_inputs_and_a_state_per_chunk_for_backward():
    T, chunk = 48, 16
    q, k, v, log_decay, state = (x.requires_grad_() for x in _random_inputs(T))
    kept: list[torch.Tensor] = []

    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        retention.chunkwise(q, k, v, log_decay, state, chunk)

    new = [x for x in kept if all(x is not given for given in (q, k, v, log_decay))]
    assert sum(x.numel() for x in new) == B * H * (T // chunk + 1) * D * E


def test_chunkwise_accepts_heads_in_the_strides_of_projections(T=70):
    q, k, v, log_decay, state = _random_inputs(T)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    inputs = [x.requires_grad_() for x in (q, k, v, log_decay, state)]
    others = [x.requires_grad_() for x in (*strided, log_decay, state)]

    actual = _gradients(lambda *args: retention.chunkwise(*args, chunk=10), others)

    torch.testing.assert_close(actual, _gradients(retention.recurrent, inputs))


@pytest.mark.parametrize("T", [1, 70])
@pytest.mark.parametrize("gate_logits", [(-1e3, -1e3), (1e3, 1e3), (-1e3, 1e3)])
def test_layer_gradients_are_finite_at_extreme_gates(T, gate_logits):
    mixer, x = _gated_layer(T, gate_logits)

    y, state, _ = mixer(x, start=0, state=None)
    (y.square().sum() + state.square().sum()).backward()

    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in mixer.parameters())
    assert mixer.out_proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize("gate_logit, kept", [(-1e3, 62.5), (0.0, math.log(2) / 16), (1e3, 0.0)])
def test_layer_decays_by_a_sixteenth_of_the_gates_log_sigmoid(gate_logit, kept):
    mixer, x = _gated_layer(1, (gate_logit, gate_logit))
    mixer, x = mixer.double(), x.detach().double()
    before = torch.ones(1, mixer.n_heads, 8, 8, dtype=torch.float64)

    _, without, _ = mixer(x, start=0, state=None)
    _, state, _ = mixer(x, start=0, state=before)

    torch.testing.assert_close(state - without, before * math.exp(-kept), rtol=0, atol=1e-14)


def _recurrence(q, k, v, log_decay, state):
    """S_t = exp(log_decay_t) S_{t-1} + (k_t D^-1/2)^T v_t; o_t = q_t S_t, entry by entry."""
    T = q.shape[2]
    outputs, final_state = np.zeros(v.shape), np.zeros(state.shape)
    for b, h in np.ndindex(B, H):
        S = state[b, h]
        for t in range(T):
            S = np.exp(log_decay[b, h, t]) * S + np.outer(k[b, h, t], v[b, h, t]) / np.sqrt(D)
            outputs[b, h, t] = q[b, h, t] @ S
        final_state[b, h] = S
    return outputs, final_state


def _random_inputs(T: int, strength: float = 0.1) -> list[torch.Tensor]:
    """Return q, k, v, log_decay and state in float64; log_decay is about -strength."""
    generator = torch.Generator().manual_seed(T)
    shapes = ((B, H, T, D), (B, H, T, D), (B, H, T, E), (B, H, T), (B, H, D, E))
    q, k, v, gate, state = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    return [q, k, v, -strength * gate.abs(), state]


def _gradients(form, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    outputs, state = form(*inputs)
    return torch.autograd.grad(outputs.square().sum() + state.square().sum(), inputs)


def _gated_layer(T: int, gate_logits: tuple[float, float]) -> tuple[GatedRetention, torch.Tensor]:
    """Return a layer and x (1, T, C) whose gates are `gate_logits` in turn, whatever the rest."""
    config = ModelConfig(
        vocab_size=1,
        d_model=16,
        layers=("retention",),
        d_ff=8,
        n_heads=2,
        n_kv_heads=2,
        n_self_heads=2,
        n_self_kv_heads=2,
        weights="dense",
    )
    torch.manual_seed(0)
    mixer = GatedRetention(config)
    for parameter in mixer.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.25)
    torch.nn.init.zeros_(mixer.decay_proj.weight)
    mixer.decay_proj.weight.data[:, 0] = 1e3
    x = torch.randn(1, T, 16)
    x[:, 0::2, 0], x[:, 1::2, 0] = gate_logits[0] / 1e3, gate_logits[1] / 1e3
    return mixer, x.requires_grad_()
