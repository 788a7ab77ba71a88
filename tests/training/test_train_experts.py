"""Training of mixtures of experts and of weights-only formats."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from training_runs import records, run, write_toml

from yocobit.config import ConfigError, preset
from yocobit.model import Decoder
from yocobit.model.experts import MixtureOfExperts
from yocobit.training.backend import compiled
from yocobit.training.config import OptimConfig
from yocobit.training.optim import Optimizers, orthogonalize
from yocobit.training.step import Objective

MOE = ("model.ffn=moe", "model.n_experts=4", "model.n_active_experts=2", "model.d_ff=32")


@pytest.fixture
def toml(tmp_path):
    return write_toml(tmp_path)


def experts(**changes) -> Decoder:
    torch.manual_seed(0)
    fields = {"ffn": "moe", "n_experts": 4, "n_active_experts": 2, "d_ff": 32}
    return Decoder(preset("nano").replace(layers=("window", "cross"), **{**fields, **changes}))


def tokens(B: int = 2) -> torch.Tensor:
    return torch.randint(512, (B, 33), generator=torch.Generator().manual_seed(0))


def test_a_run_with_experts_logs_their_balance_and_resumes_to_the_last_bit(toml, tmp_path):
    overrides = (*MOE, "model.weights=ternary_g128", "schedule.kind=step", "run.steps=8")
    run(toml, tmp_path / "straight", *overrides)
    run(toml, tmp_path / "parts", *overrides[:-1], "run.steps=4")
    run(toml, tmp_path / "parts", *overrides, resume=True)

    balance = [record["load_balancing_loss"] for record in records(tmp_path / "straight")]
    assert len(balance) == 8 and all(0.9 < value < 4 for value in balance)
    assert balance[-1] == records(tmp_path / "parts")[-1]["load_balancing_loss"]


def test_a_run_without_experts_logs_no_balance(straight):
    assert not any("load_balancing_loss" in record for record in records(straight))


def test_the_loss_has_the_mean_balance_of_the_layers_for_each_target():
    model, rows = experts(), tokens()
    targets = rows[:, 1:].clone()
    targets[0, :10] = -1
    ffns = [layer.ffn for layer in model.layers]
    plain, terms = Objective(model, 0.0)(rows[:, :-1], targets)

    loss, _ = Objective(model, 0.0, balance_weight=0.5)(rows[:, :-1], targets)
    model.hidden(rows[:, :-1])
    balance = sum(float(ffn.balance.detach()) for ffn in ffns) / len(ffns)

    n_targets = int((targets >= 0).sum())
    assert float(terms[2]) == pytest.approx(balance * n_targets, rel=1e-6)
    expected = plain.item() + 0.5 * balance * n_targets
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_the_balance_of_an_objective_trains_the_router():
    def router_gradient(weight: float) -> torch.Tensor:
        model = experts()
        Objective(model, 0.0, balance_weight=weight)(tokens()[:, :-1], tokens()[:, 1:])[
            0
        ].backward()
        return model.layers[0].ffn.router.weight.grad

    assert not torch.allclose(router_gradient(0.0), router_gradient(1.0))


def gradients(objective: torch.nn.Module, model: Decoder) -> list[torch.Tensor]:
    model.zero_grad()
    objective(tokens()[:, :-1], tokens()[:, 1:])[0].backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_recomputed_activations_give_the_same_gradients_bit_for_bit():
    model = experts(weights="ternary_g128")
    stored = gradients(Objective(model, 0.0, balance_weight=0.1), model)

    model.recompute = True
    recomputed = gradients(Objective(model, 0.0, balance_weight=0.1), model)

    assert all(torch.equal(a, b) for a, b in zip(stored, recomputed, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_a_compiled_objective_has_the_gradients_of_the_eager_one(monkeypatch, recompute):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model = experts()
    model.recompute = recompute
    objective = Objective(model, 0.0, balance_weight=0.1)

    found = gradients(compiled(objective), model)

    expected = gradients(objective, model)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_muon_orthogonalises_each_expert():
    model = experts()
    Objective(model, 0.0)(tokens()[:, :-1], tokens()[:, 1:])[0].backward()
    config = OptimConfig(optimizer="muon", learning_rate=0.1, weight_decay=0.0, momentum=0.0)
    ffn: MixtureOfExperts = model.layers[0].ffn
    weight = ffn.up_proj.weight
    before, gradient = weight.detach().clone(), weight.grad.clone()

    Optimizers(model, config).step(1.0, 1.0)

    directions = orthogonalize(gradient.unflatten(0, (4, -1)))
    expected = before - 0.1 * 0.2 * 64**0.5 * directions.flatten(0, 1)
    torch.testing.assert_close(weight.detach(), expected)


@pytest.mark.parametrize("kind", ["ternary_g64", "sign_g128", "ternary_row_a16"])
def test_weights_only_formats_train_and_resume(toml, tmp_path, kind):
    overrides = (f"model.weights={kind}",)
    run(toml, tmp_path / "straight", *overrides, "schedule.kind=step")
    run(toml, tmp_path / "parts", *overrides, "schedule.kind=step", "run.steps=4")
    run(toml, tmp_path / "parts", *overrides, "schedule.kind=step", resume=True)

    losses = [record["loss"] for record in records(tmp_path / "straight")]
    assert losses[-1] < losses[0]
    assert losses[-1] == records(tmp_path / "parts")[-1]["loss"]


@pytest.mark.parametrize("kind", ["int2_g64", "int2_g128", "odd_g128"])
def test_a_run_of_weights_that_cannot_be_trained_ends_in_one_line(toml, tmp_path, kind):
    with pytest.raises(ConfigError, match=f"^weights must be .* in training .* are '{kind}'; "):
        run(toml, tmp_path / "run", f"model.weights={kind}")
