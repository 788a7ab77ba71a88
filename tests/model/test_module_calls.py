"""Projections and norms can be hooked and replaced, although fused kernels use their weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from yocobit.config import preset
from yocobit.mixers import FEED_FORWARDS
from yocobit.model import Decoder

LAYERS = ("retention", "window", "full", "gate", "retention", "cross", "gmu")


def model(**changes) -> Decoder:
    torch.manual_seed(0)
    return Decoder(preset("nano").replace(layers=LAYERS, **changes))


def tokens() -> torch.Tensor:
    return torch.randint(512, (2, 20), generator=torch.Generator().manual_seed(1))


def uncalled(decoder: Decoder) -> list[str]:
    """Return the modules with parameters of their own that a forward hook does not see."""
    leaves = {name: m for name, m in decoder.named_modules() if list(m.parameters(recurse=False))}
    seen = []
    for name, module in leaves.items():
        module.register_forward_hook(lambda *_, name=name: seen.append(name))
    decoder(tokens())
    return sorted(set(leaves) - set(seen))


# Experts reject hooks, as test_experts.py tests.
@pytest.mark.parametrize("ffn", [kind for kind in FEED_FORWARDS if kind != "moe"])
@pytest.mark.parametrize("weights", ["ternary", "dense"])
def test_every_module_with_parameters_runs_its_hooks(weights, ffn):
    assert uncalled(model(weights=weights, ffn=ffn)) == []


@pytest.mark.parametrize("weights", ["ternary", "ternary_row", "sign"])
def test_hooks_on_projections_change_no_logit(weights):
    hooked, plain = model(weights=weights), model(weights=weights)
    for name, module in hooked.named_modules():
        if name.endswith("_proj"):
            module.register_forward_pre_hook(lambda *_: None)

    assert torch.equal(hooked(tokens()), plain(tokens()))


@pytest.mark.parametrize("name", ["k_proj", "up_proj", "sub_norm"])
def test_output_of_a_hook_replaces_that_of_the_module(name):
    hooked, plain = model(), model()
    for path, module in hooked.named_modules():
        if path.endswith(name):
            module.register_forward_hook(lambda _module, _args, y: 2 * y)

    assert not torch.allclose(hooked(tokens()), plain(tokens()), rtol=0, atol=1e-2)


@pytest.mark.parametrize("name", ["q_proj", "g_proj", "sub_norm", "decay_proj"])
def test_weights_that_a_hook_loads_are_used(name):
    """As offloading does: weights exist between the hooks of their module only."""
    offloaded, plain = model(weights="dense"), model(weights="dense")
    for path, module in offloaded.named_modules():
        if path.endswith(name):
            _offload(module)

    # The fused norm rounds in another order than its parts.
    torch.testing.assert_close(offloaded(tokens()), plain(tokens()), rtol=0, atol=1e-5)


def _offload(module: nn.Module) -> None:
    stored = module.weight.detach().clone()
    module.weight.data = torch.full_like(stored, torch.nan)
    forward = module.forward

    def load_and_run(x):
        module.weight.data.copy_(stored)
        y = forward(x)
        module.weight.data.fill_(torch.nan)
        return y

    module.forward = load_and_run
    module.requires_grad_(False)


def test_replaced_norm_runs():
    replaced, plain = model(weights="dense"), model(weights="dense")
    for block in replaced.layers:
        if isinstance(getattr(block.mixer, "sub_norm", None), nn.Module):
            block.mixer.sub_norm = nn.Sequential(block.mixer.sub_norm)

    torch.testing.assert_close(replaced(tokens()), plain(tokens()), rtol=0, atol=1e-5)
    assert uncalled(replaced) == []
