"""The gradient-spike guard: skipped steps, and the run after them."""

import math
import signal

import pytest
import torch
from training_runs import assert_same_run, records, run, signal_at

from yocobit.config import preset
from yocobit.model import Decoder
from yocobit.packing import checkpoints
from yocobit.training import TrainingError, checkpoint, loop, state
from yocobit.training.batch import Batch
from yocobit.training.config import OptimConfig
from yocobit.training.loop import Loop
from yocobit.training.optim import Optimizers
from yocobit.training.state import GradientSpikeGuard
from yocobit.training.step import GradientStep, Objective


@pytest.mark.parametrize(
    ("loss", "norm", "reason"),
    [
        (math.nan, 1.0, "loss is nan"),
        (math.inf, 1.0, "loss is inf"),
        (1.0, math.nan, "gradient norm is nan"),
        (1.0, math.inf, "gradient norm is inf"),
    ],
)
def test_guard_skips_non_finite_losses_and_norms(loss, norm, reason):
    guard = GradientSpikeGuard()

    assert guard.check(loss, norm, spike_factor=0) == reason
    assert guard == GradientSpikeGuard([], n_skipped=1, n_in_a_row=1)


def test_guard_skips_a_norm_above_the_factor_times_the_median():
    guard = GradientSpikeGuard(norms=[1.0] * 20 + [2.0] * 21)

    assert guard.check(1.0, 20.0, spike_factor=10) is None  # the median is 2
    assert "20.1 is above 10 times its median 2" in guard.check(1.0, 20.1, spike_factor=10)


def test_spikes_do_not_raise_the_threshold_of_the_guard():
    guard = GradientSpikeGuard(norms=[1.0] * 100)

    reasons = [guard.check(1.0, 50.0, spike_factor=10) for _ in range(200)]

    assert all(reasons) and guard.n_in_a_row == guard.n_skipped == 200


def test_guard_skips_no_spike_at_the_start_of_a_run_or_when_it_is_off():
    assert GradientSpikeGuard(norms=[1.0] * 31).check(1.0, 1e9, spike_factor=10) is None
    assert GradientSpikeGuard(norms=[1.0] * 99).check(1.0, 1e9, spike_factor=0) is None


def test_guard_stores_the_last_128_norms():
    guard = GradientSpikeGuard()
    for norm in range(300):
        guard.check(1.0, float(norm), spike_factor=0)

    assert guard.norms == [float(norm) for norm in range(300 - 128, 300)]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_skipped_step_changes_neither_weights_nor_optimizer_state(optimizer):
    torch.manual_seed(0)
    model = Decoder(preset("nano"))
    optimizers = Optimizers(model, OptimConfig(optimizer=optimizer))
    objective = Objective(model, 0.0)
    step = GradientStep(objective, optimizers, GradientSpikeGuard(), grad_clip=1.0, spike_factor=0)
    tokens = torch.arange(18).view(2, 9)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], torch.zeros(2, 8, dtype=torch.bool))
    step([batch], 1.0, 1.0)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = {name: value.clone() for name, value in optimizers.state().items()}

    objective.register_forward_hook(lambda module, _, found: (found[0] * math.inf, found[1]))
    result = step([batch], 1.0, 1.0)

    assert result.skipped == "gradient norm is nan" and math.isfinite(result.loss)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, state[name]) for name, value in optimizers.state().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.fixture
def poison(monkeypatch):
    """Return a set of steps (from 1) whose loss is infinite, in every run of the test."""
    steps: set[int] = set()
    update = Loop._update

    def poisoned(self, factor):
        if self.state.step + 1 not in steps:
            return update(self, factor)
        objective = self.gradient_step.objective
        with objective.register_forward_hook(
            lambda module, _, found: (found[0], found[1] + math.inf)
        ):
            return update(self, factor)

    monkeypatch.setattr(Loop, "_update", poisoned)
    return steps


def test_run_reports_a_skipped_step_and_continues(toml, tmp_path, poison):
    poison.update({3, 4})

    out = tmp_path / "run"
    run(toml, out)

    skipped = [record for record in records(out) if "skipped" in record]
    assert [record["step"] for record in skipped] == [3, 4]
    assert [(r["loss"], r["skipped"]) for r in skipped] == [(None, "loss is inf")] * 2
    assert all(math.isfinite(record["loss"]) for record in records(out)[4:])
    assert "Infinity" not in (out / "metrics.jsonl").read_text()
    assert checkpoint.load_state(checkpoints.last(out)).guard.n_skipped == 2


def test_run_stopped_between_skipped_steps_resumes_identically(toml, tmp_path, poison, monkeypatch):
    poison.update({6, 7, 8, 9})
    run(toml, tmp_path / "straight", "optim.max_skips=5")
    out = tmp_path / "stopped"

    with monkeypatch.context() as patch:
        patch.setattr(loop, "rate_factor", signal_at(7, signal.SIGTERM))
        saved = run(toml, out, "optim.max_skips=5")
    n_in_a_row = checkpoint.load_state(saved).guard.n_in_a_row
    run(toml, out, "optim.max_skips=5", resume=True)

    assert n_in_a_row == 2
    assert_same_run(out, tmp_path / "straight")


def test_run_ends_after_max_skips_with_remedy_and_last_checkpoint(toml, tmp_path, poison):
    poison.update({6, 7, 8, 9})
    message = (
        r"step 8: skipped 3 steps in a row, the last one because loss is inf; "
        r"last checkpoint: .*step-000004; lower optim.learning_rate"
    )

    with pytest.raises(TrainingError, match=message):
        run(toml, tmp_path / "run", "optim.max_skips=3")

    assert [record["step"] for record in records(tmp_path / "run")][-1] == 8


def test_no_checkpoint_is_written_while_steps_are_skipped(toml, tmp_path, poison):
    """Because the weights may be non-finite already."""
    with pytest.raises(TrainingError, match=r"loss is .*last checkpoint: none yet"):
        run(toml, tmp_path / "run", "optim.learning_rate=1e38", "optim.optimizer=adam")

    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_spike_of_a_run_is_skipped(toml, tmp_path, monkeypatch):
    squares, calls = GradientStep._local_squares, []

    def spiking(self):
        calls.append(squares(self))
        return 1e12 if len(calls) == 12 else calls[-1]

    monkeypatch.setattr(state, "_MIN_NORMS", 8)
    monkeypatch.setattr(GradientStep, "_local_squares", spiking)
    run(toml, tmp_path / "run", "run.steps=13", "run.eval_every=100")

    skipped = {r["step"]: r["skipped"] for r in records(tmp_path / "run") if "skipped" in r}
    assert list(skipped) == [12]
    assert "gradient norm 1e+06 is above 10 times its median" in skipped[12]
