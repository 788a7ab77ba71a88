"""Runs of models with the architecture features of published models."""

from __future__ import annotations

import json
import signal
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from published_decoders import CASES, V
from training_runs import assert_same_run, run, signal_at

from yocobit import Engine
from yocobit.config import ModelConfig
from yocobit.model import Decoder
from yocobit.packing import checkpoints, pack
from yocobit.training import loop
from yocobit.training.backend import compiled
from yocobit.training.step import Objective

FEATURES = {
    "layers": ["window", "full"],
    "head_size": 24,
    "qk_norm": "after_rope",
    "qkv_bias": True,
    "full_rope": "half",
    "full_rope_frequencies": [1.0, 0.125],
    "nope_layers": [0],
    "projection_norms": True,
    "head_norm": True,
    "post_norms": True,
    "embedding_scale": 2.0,
    "residual_scale": 0.5,
    "logit_scale": 0.25,
    "attention_scale": 0.25,
    "ffn": "geglu",
}
OVERRIDES = [f"model.{name}={json.dumps(value)}" for name, value in FEATURES.items()]


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens = torch.randint(V, (2, 24), generator=torch.Generator().manual_seed(1))
    resets = torch.zeros(2, 24, dtype=torch.bool)
    resets[0, 9] = True
    return tokens, tokens.roll(-1, dims=1), resets


def test_a_run_resumes_to_the_last_bit_and_its_model_packs(toml, tmp_path, monkeypatch):
    run(toml, tmp_path / "straight", *OVERRIDES, "run.steps=6")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "rate_factor", signal_at(5, signal.SIGTERM))
        run(toml, tmp_path / "parts", *OVERRIDES, "run.steps=6")
    run(toml, tmp_path / "parts", *OVERRIDES, "run.steps=6", resume=True)

    assert_same_run(tmp_path / "parts", tmp_path / "straight")
    found = checkpoints.last(tmp_path / "straight")
    config = ModelConfig.from_json(found / "config.json")
    assert {**config.fields(), **FEATURES} == config.fields()
    logits = Engine(pack(found, tmp_path / "model"), 1, None).logits([1, 2, 3], "f32")
    assert logits.shape == (3, 270)


@pytest.mark.parametrize("name", CASES)
def test_loss_of_the_objective_is_that_of_the_logits(name):
    torch.manual_seed(0)
    model = Decoder(CASES[name].config)
    tokens, targets, _ = batch()

    loss, _ = Objective(model, 0.0)(tokens, targets)
    loss.backward()

    expected = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(loss, expected)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert all(gradient.any() for gradient in gradients.values())


@pytest.mark.slow  # 6 to 16 s each
@pytest.mark.parametrize("name", ["gemma3", "hunyuan", "phi3", "bitnet"])
def test_compiled_objective_has_equal_gradients(name, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch.manual_seed(0)
    model = Decoder(CASES[name].config)
    objective = Objective(model, 0.0)

    def gradients(module: torch.nn.Module) -> list[torch.Tensor]:
        model.zero_grad()
        module(*batch())[0].backward()
        return [parameter.grad for parameter in model.parameters()]

    expected = gradients(objective)
    for found, gradient in zip(gradients(compiled(objective)), expected, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)
