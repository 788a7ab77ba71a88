"""The gate: its equation in NumPy, its gradients, and its memory.

Letters: B batch   T positions   C model width
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from yocobit.config import WeightKind, preset
from yocobit.model import Decoder
from yocobit.model.mixers.gate import Gate
from yocobit.model.quantization import quantize_activations, quantize_weight

B, T = 2, 7
NANO = preset("nano")


@pytest.mark.parametrize("weights", ["ternary", "sign", "dense"])
def test_gate_equals_its_equation(weights: WeightKind):
    gate, x = gate_of(weights).double(), inputs().double()
    w = gate.gate_proj.weight

    y, state, memory = gate(x, 0, None)

    logits = x.numpy() @ w.numpy().T
    if weights != "dense":
        codes, scale = quantize_activations(x)
        w_codes, w_scale = quantize_weight(w, weights)
        logits = codes.numpy() @ w_codes.numpy().T * (scale * w_scale).numpy()
    np.testing.assert_allclose(y, x.numpy() / (1 + np.exp(-logits)), rtol=1e-12)
    assert (state, memory) == (None, None)


def test_positions_do_not_affect_each_other():
    gate, x = gate_of("ternary"), inputs()

    alone = [gate(position, 0, None)[0] for position in x.split(1, dim=1)]

    torch.testing.assert_close(torch.cat(alone, dim=1), gate(x, 0, None)[0], rtol=0, atol=0)


@pytest.mark.parametrize("weights", ["ternary", "sign", "dense"])
@pytest.mark.parametrize("magnitude", [0.0, 1e-20, 1.0, 1e4])
def test_gradients_are_finite_where_the_sigmoid_saturates(weights: WeightKind, magnitude: float):
    gate, x = gate_of(weights), (magnitude * inputs()).requires_grad_()
    gate.gate_proj.weight.requires_grad_()

    y, *_ = gate(x, 0, None)
    gradients = torch.autograd.grad(y.square().sum(), (x, gate.gate_proj.weight))

    assert y.isfinite().all() and all(gradient.isfinite().all() for gradient in gradients)


def test_memory_is_the_output_of_the_gate():
    model = Decoder(NANO.replace(layers=("window", "gate", "cross", "gmu"))).requires_grad_(False)
    outputs, memories = [], []
    model.layers[1].mixer.register_forward_hook(lambda _m, _args, output: outputs.append(output[0]))
    model.layers[3].mixer.register_forward_pre_hook(lambda _m, args: memories.append(args[2]))

    model(torch.arange(T)[None])

    assert torch.equal(outputs[0], memories[0])


def gate_of(weights: WeightKind) -> Gate:
    gate = Gate(NANO.replace(weights=weights)).requires_grad_(False)
    torch.nn.init.normal_(gate.gate_proj.weight, generator=torch.Generator().manual_seed(1))
    return gate


def inputs() -> Tensor:
    return torch.randn(B, T, NANO.d_model, generator=torch.Generator().manual_seed(2))
