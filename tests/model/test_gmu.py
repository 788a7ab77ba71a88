"""Gated memory units against NumPy, their memory, and gradients through it.

Letters: B batch   T positions   C model width   H heads   G KV heads   D head size
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from yocobit.config import preset
from yocobit.model import Cache, Decoder
from yocobit.model.mixers.gmu import GatedMemoryUnit

B, T, WINDOW, EPS = 2, 19, 5, 1e-5
MIXERS = ("retention", "window", "full")


@pytest.mark.parametrize("sub_norm", [False, True])
@pytest.mark.parametrize("mixer", MIXERS)
def test_unit_gates_the_memory_of_the_last_self_decoder_layer(mixer, sub_norm):
    model = _model(("window", mixer, "cross", "gmu"), sub_norm=sub_norm)
    unit = model.layers[3].mixer
    mixed, gated, outputs = _inputs(model.layers[1].mixer), _inputs(unit), []
    unit.register_forward_hook(lambda _module, _args, output: outputs.append(output[0]))

    model(_tokens())

    memory = _memory(mixed[0], _weights(model.layers[1].mixer), mixer)
    expected = _gated_memory_unit(gated[0], memory, _weights(unit))
    np.testing.assert_allclose(outputs[0], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("weights", ["ternary", "sign"])
def test_both_projections_are_quantised(weights):
    """The layer equals itself with weights and matmul inputs rounded beforehand."""
    config = preset("nano").replace(layers=("retention", "cross", "gmu"), weights=weights)
    torch.manual_seed(0)
    unit = Decoder(config).layers[2].mixer.double().requires_grad_(False)
    x, memory = torch.randn(2, B, T, config.d_model, dtype=torch.float64)

    y, *_ = unit(x, 0, memory)

    w = {
        name: _quantised(value, weights) if name.endswith("proj") else value
        for name, value in _weights(unit).items()
    }
    expected = _gated_memory_unit(x.numpy(), memory.numpy(), w, rounded=_rounded)
    np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mixer", MIXERS)
def test_gradients_through_the_memory_equal_finite_differences(mixer):
    model = _model((mixer, "gmu", "cross"), sub_norm=False)
    # The first mixer contributes its memory only.
    torch.nn.init.zeros_(model.layers[0].mixer.out_proj.weight)
    weight = model.layers[0].mixer.v_proj.weight.requires_grad_()
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)).double()

    def loss() -> Tensor:
        return model(_tokens()).square().mean()

    (grad,) = torch.autograd.grad(loss(), weight)

    values, step = [], 1e-5
    with torch.no_grad():
        for shift in (step, -2 * step):
            weight.add_(shift * direction)
            values.append(loss())
    slope = (values[0] - values[1]) / (2 * step)
    assert abs(slope) > 1e-4
    # Central differences: the third derivative times step^2, and eps of the loss over step.
    torch.testing.assert_close((grad * direction).sum(), slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("n_last", [1, 4, T])
@pytest.mark.parametrize("first", [0, 7])
def test_early_exit_keeps_the_memory_of_the_remaining_rows(first, n_last):
    model, tokens, cache = _model(("retention", "gmu", "cross", "gmu")), _tokens(), Cache()
    if first:
        model.prefill(tokens[:, :first], cache)

    hidden = model.extend(tokens[:, first:], cache, n_last=n_last)

    n = min(n_last, T - first)
    torch.testing.assert_close(hidden, model.hidden(tokens)[:, -n:])


def test_only_the_last_self_decoder_layer_returns_memory():
    for layers in (("retention", "window", "gmu", "cross"), ("retention", "window", "cross")):
        returned = [block.mixer.returns_memory for block in _model(layers).layers[:2]]

        assert returned == [False, "gmu" in layers]


def test_layer_has_two_projections_and_a_norm():
    unit = GatedMemoryUnit(preset("nano"))

    C = preset("nano").d_model
    shapes = {name: tuple(parameter.shape) for name, parameter in unit.named_parameters()}
    assert shapes == {"g_proj.weight": (C, C), "sub_norm.weight": (C,), "out_proj.weight": (C, C)}


def _model(layers: tuple[str, ...], **changes) -> Decoder:
    """Return a float64 model without rounding, with norms that are not all ones."""
    torch.manual_seed(0)
    config = preset("nano").replace(
        vocab_size=61, layers=layers, window=WINDOW, weights="dense", norm_eps=EPS, **changes
    )
    no_rope = dict.fromkeys(("retention_rope", "window_rope", "full_rope"), "none")
    model = Decoder(config.replace(**no_rope)).double()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.1)
    return model.requires_grad_(False)


def _tokens() -> Tensor:
    return torch.randint(61, (B, T), generator=torch.Generator().manual_seed(2))


def _inputs(module: torch.nn.Module) -> list[np.ndarray]:
    """Return a list that collects the first argument of each call."""
    found: list[np.ndarray] = []
    module.register_forward_pre_hook(lambda _module, args: found.append(args[0].numpy()))
    return found


def _weights(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {
        name.removesuffix(".weight"): value.numpy() for name, value in module.state_dict().items()
    }


def _gated_memory_unit(x, memory, w, rounded=lambda x: x):
    """y = W_out norm(m * silu(W_g x)), arXiv:2507.06607, of x and m (B, T, C)."""
    gate = rounded(x) @ w["g_proj"].T
    y = memory * gate / (1 + np.exp(-gate))
    if "sub_norm" in w:
        y = y / np.sqrt((y**2).mean(axis=-1, keepdims=True) + EPS) * w["sub_norm"]
    return rounded(y) @ w["out_proj"].T


def _memory(x, w, mixer):
    """The output of a mixer without rope for x (B, T, C), before gate and output projection."""
    config = preset("nano")
    H = config.n_heads if mixer == "full" else config.n_self_heads
    D = config.d_model // H
    q, k, v = (
        (x @ w[f"{name}_proj"].T).reshape(B, T, -1, D).transpose(0, 2, 1, 3) for name in "qkv"
    )
    k, v = (np.repeat(each, H // each.shape[1], axis=1) for each in (k, v))  # (B, H, T, D)
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(D)
    t = np.arange(T)
    visible = t[:, None] >= t
    if mixer == "retention":
        log_decay = -np.log1p(np.exp(-(x @ w["decay_proj"].T))).transpose(0, 2, 1) / 16
        total = log_decay.cumsum(axis=-1)
        o = scores * np.where(visible, np.exp(total[..., :, None] - total[..., None, :]), 0) @ v
        y = o / np.sqrt((o**2).mean(axis=-1, keepdims=True) + EPS)
    else:
        if mixer == "window":
            visible &= t[:, None] - t < WINDOW
        weights = np.where(visible, np.exp(scores), 0)
        y = weights / weights.sum(axis=-1, keepdims=True) @ v
    return y.transpose(0, 2, 1, 3).reshape(B, T, -1)


def _quantised(w, kind):
    scale = np.abs(w).mean()
    codes = np.clip(np.round(w / scale), -1, 1) if kind == "ternary" else 2 * (w > w.mean()) - 1
    return codes * scale


def _rounded(x):
    scale = np.abs(x).max(axis=-1, keepdims=True) / 127
    return np.round(x / scale) * scale
