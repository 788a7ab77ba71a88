"""Interrupted and resumed runs: bit-identical to uninterrupted ones."""

import json
import random
import shutil
import signal
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
from rich.console import Console
from training_runs import Killed, assert_same_run, full_disk, raise_at, records, run, signal_at

from yocobit.config import ConfigError
from yocobit.disk import WriteError
from yocobit.packing import checkpoints
from yocobit.training import checkpoint, loop, time_budget
from yocobit.training.config import load as load_config

# Runs a configuration in consecutive processes; each is killed at the n-th call of a function.
KILLED_RUNS = """
import importlib, json, os, signal, sys
from pathlib import Path
from rich.console import Console
from yocobit.training import load, train

toml, out, moments = sys.argv[1:]

def run_and_kill(module, name, n):
    owner, calls = importlib.import_module(module), 0
    function = getattr(owner, name)

    def killing(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(owner, name, killing)
    train(load(Path(toml)), Path(out), resume=True, console=Console())

for moment in json.loads(moments):
    if (child := os.fork()) == 0:
        run_and_kill(*moment)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, moment
"""


def test_run_killed_repeatedly_equals_an_uninterrupted_one(toml, tmp_path, straight):
    out = tmp_path / "killed"
    out.mkdir()
    moments = [
        # During a step, no checkpoint yet.
        ("yocobit.training.loop", "rate_factor", 3),
        # While the first checkpoint is flushed: its files have a temporary name.
        ("yocobit.training.checkpoint", "flush", 4),
        # Steps after a checkpoint: metrics are ahead of it.
        ("yocobit.training.loop", "rate_factor", 7),
        # While the metrics of the repeated steps are discarded.
        ("os", "replace", 1),
    ]

    killed = forked.run(toml, out, json.dumps(moments), code=KILLED_RUNS)
    assert killed.returncode == 0, killed.stderr
    run(toml, out, resume=True)

    assert_same_run(out, straight)
    assert not list((out / "checkpoints").glob(".partial*"))


@pytest.mark.parametrize(
    "call", [pytest.param(i, marks=[pytest.mark.slow] * (i % 2)) for i in range(1, 9)]
)
def test_run_killed_while_writing_a_checkpoint_resumes_identically(
    toml, tmp_path, monkeypatch, call, straight
):
    out, calls = tmp_path / "killed", count(1)

    def killing(function):
        def call_or_die(*args, **kwargs):
            if next(calls) == call:
                raise Killed
            return function(*args, **kwargs)

        return call_or_die

    with monkeypatch.context() as patch:
        for name in ("save_file", "write_json"):
            patch.setattr(checkpoint, name, killing(getattr(checkpoint, name)))
        patch.setattr(Path, "rename", killing(Path.rename))
        patch.setattr(shutil, "rmtree", killing(shutil.rmtree))
        with pytest.raises(Killed):
            run(toml, out, "run.keep=1")
    run(toml, out, "run.keep=1", resume=True)

    assert_same_run(out, straight)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_run_killed_at_random_steps_equals_an_uninterrupted_one(
    toml, tmp_path, monkeypatch, seed, straight
):
    out = tmp_path / "killed"
    out.mkdir()

    for step in random.Random(seed).sample(range(2, 12), 3):
        with monkeypatch.context() as patch, suppress(Killed):
            patch.setattr(loop, "rate_factor", raise_at(step))
            run(toml, out, resume=True)
    run(toml, out, resume=True)

    assert_same_run(out, straight)


def files(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out)) for path in out.rglob("*"))


def test_full_disk_leaves_the_last_checkpoint_complete_and_resuming_is_identical(
    toml, stopped, straight
):
    kept, before = checkpoints.last(stopped), files(stopped)
    message = (
        r"step-000006: cannot be written \(.*File too large.*\); "
        rf"last checkpoint: {kept}; free disk space and continue with --resume"
    )

    with (
        full_disk((kept / "model.safetensors").stat().st_size // 2),
        pytest.raises(WriteError, match=message),
    ):
        run(toml, stopped, resume=True)

    assert checkpoints.last(stopped) == kept and files(stopped) == before
    run(toml, stopped, resume=True)
    assert_same_run(stopped, straight)


def test_disk_full_at_a_metrics_record_stops_the_run_and_resuming_is_identical(
    toml, stopped, straight
):
    before = files(stopped)

    with (
        full_disk((stopped / "metrics.jsonl").stat().st_size + 50),
        pytest.raises(WriteError, match=r"metrics.jsonl: cannot be written \(File too large"),
    ):
        run(toml, stopped, resume=True)

    assert files(stopped) == before
    run(toml, stopped, resume=True)
    assert_same_run(stopped, straight)


def test_metrics_that_cannot_be_rewritten_are_unchanged(toml, stopped):
    before, metrics = files(stopped), (stopped / "metrics.jsonl").read_bytes()

    with full_disk(50), pytest.raises(WriteError, match=r"metrics.jsonl: cannot be written"):
        run(toml, stopped, resume=True)

    assert files(stopped) == before and (stopped / "metrics.jsonl").read_bytes() == metrics


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_the_run_after_its_step_and_resuming_is_identical(
    toml, tmp_path, monkeypatch, number, straight
):
    out = tmp_path / "stopped"
    if number == signal.SIGHUP:
        signal.signal(number, signal.SIG_DFL)  # under nohup it is ignored

    with monkeypatch.context() as patch:
        patch.setattr(loop, "rate_factor", signal_at(7, number))
        saved = run(toml, out)
    handler_after = signal.getsignal(number)
    n_records = len(records(out))
    run(toml, out, resume=True)

    assert saved.name == "step-000007" and n_records == 7
    assert handler_after in (signal.SIG_DFL, signal.default_int_handler)
    assert_same_run(out, straight)


def test_resume_ignores_a_torn_checkpoint(toml, tmp_path, straight):
    out = tmp_path / "torn"
    shutil.copytree(straight, out)
    newest = checkpoints.last(out)
    (newest / "model.safetensors").write_bytes(b"torn")

    run(toml, out, resume=True)

    assert checkpoints.last(out) == newest
    assert_same_run(out, straight)


def test_resume_of_a_finished_run_changes_nothing(toml, tmp_path):
    out = tmp_path / "run"
    saved = run(toml, out)
    before = records(out), saved.stat().st_mtime_ns

    again = run(toml, out, resume=True)

    assert (records(out), again.stat().st_mtime_ns) == before
    assert again == saved


@pytest.fixture
def early_plan(monkeypatch):
    """Convert a time budget after fewer steps than a real run does."""
    monkeypatch.setattr(time_budget, "MEASURED_STEPS", 12)


def test_budget_of_minutes_is_converted_to_steps_once(toml, tmp_path, monkeypatch, early_plan):
    minutes = "run.minutes=0.08"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "time", clock(step_s=0.2))
        run(toml, tmp_path / "straight", minutes)
    out = tmp_path / "stopped"

    with monkeypatch.context() as patch:
        patch.setattr(loop, "time", clock(step_s=0.2))
        patch.setattr(
            loop, "rate_factor", signal_at(time_budget.MEASURED_STEPS + 3, signal.SIGTERM)
        )
        run(toml, out, minutes)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "time", clock(step_s=9.0))  # a slower machine keeps the number of steps
        run(toml, out, minutes, resume=True)

    total = checkpoint.load_state(checkpoints.last(out)).total_steps
    assert total is not None and total > time_budget.MEASURED_STEPS + 3
    assert_same_run(out, tmp_path / "straight")


def test_converted_budget_survives_a_kill_after_the_conversion(
    toml, tmp_path, monkeypatch, early_plan
):
    out = tmp_path / "run"
    monkeypatch.setattr(loop, "time", clock(step_s=0.2))
    monkeypatch.setattr(loop, "rate_factor", raise_at(time_budget.MEASURED_STEPS + 1))

    with pytest.raises(Killed):
        run(toml, out, "run.minutes=0.08", "run.checkpoint_every=1000")

    state = checkpoint.load_state(checkpoints.last(out))
    assert state.step == time_budget.MEASURED_STEPS and state.total_steps is not None


@pytest.mark.parametrize("before", ["run.minutes=0.08", "run.steps=20"])
def test_budget_of_minutes_can_be_changed_on_resume(
    toml, tmp_path, monkeypatch, early_plan, before
):
    out = tmp_path / "run"
    monkeypatch.setattr(loop, "time", clock(step_s=0.2))
    first = checkpoint.load_state(run(toml, out, before))
    shutil.copytree(out, tmp_path / "killed")

    more = checkpoint.load_state(run(toml, out, "run.minutes=0.2", resume=True))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "rate_factor", raise_at(first.step + 2))
        run(toml, tmp_path / "killed", "run.minutes=0.2", resume=True)
    run(toml, tmp_path / "killed", "run.minutes=0.2", resume=True)

    assert first.step + 5 < more.step == more.total_steps
    assert more.seconds == pytest.approx(0.2 * 60, rel=0.25)  # evaluations cost nothing here
    assert_same_run(tmp_path / "killed", out)


def test_changed_budget_that_is_used_up_ends_the_run(toml, tmp_path):
    run(toml, tmp_path / "run", "run.steps=4")

    saved = run(toml, tmp_path / "run", "run.minutes=1e-6", resume=True)

    assert saved.name == "step-000004"


@pytest.mark.parametrize("override", ["run.steps=14", "run.minutes=0.005"])
def test_run_that_had_minutes_can_be_resumed_with_another_budget(toml, tmp_path, override):
    run(toml, tmp_path / "run", "run.minutes=0.001")

    assert run(toml, tmp_path / "run", override, resume=True)


def test_settings_without_influence_on_losses_can_be_changed_on_resume(toml, stopped, straight):
    run(
        toml,
        stopped,
        *("run.keep=5", "run.checkpoint_every=2", "run.sample_every=7", "run.recompute=true"),
        resume=True,
    )

    assert_same_run(stopped, straight)


def clock(step_s: float) -> SimpleNamespace:
    """Return a `time` whose clock advances by a third of a step at each call."""
    ticks = count()
    return SimpleNamespace(monotonic=lambda: next(ticks) * step_s / 3)


def test_resume_without_a_run_is_refused_and_writes_nothing(toml, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run-a").mkdir()
    before = files(tmp_path)

    with pytest.raises(ConfigError, match=r"typo: no such run to resume; correct --out, or omit"):
        run(toml, tmp_path / "typo", resume=True)
    with pytest.raises(ConfigError, match=r"other: has no run to resume but has run-a; correct"):
        run(toml, tmp_path / "other", resume=True)

    assert files(tmp_path) == before


def test_resume_in_an_empty_directory_starts_a_run_with_a_message(toml, tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()

    saved = loop.train(
        load_config(toml, ["run.steps=1"]), out, resume=True, console=Console(width=200)
    )

    assert saved.name == "step-000001"
    assert f"nothing to resume in {out} yet: a new run" in capsys.readouterr().out


def test_second_run_in_the_same_directory_is_refused_without_resume(toml, tmp_path):
    run(toml, tmp_path / "run", "run.steps=1")

    with pytest.raises(ConfigError, match="already holds a run; pass --resume"):
        run(toml, tmp_path / "run", "run.steps=1")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.seed=1", "run.seed was 0 and is now 1; restore it"),
        ("optim.batch_size=3", "optim.batch_size was 2 and is now 3"),
        ("model.d_ff=64", "model.d_ff was 128 and is now 64"),
        ("data.context=8", "data.context was 16 and is now 8"),
        ("data.vocab_size=260", "data.vocab_size was 270 and is now 260"),
    ],
)
def test_resume_with_another_setting_is_refused_with_both_values(toml, tmp_path, override, message):
    run(toml, tmp_path / "run", "run.steps=1")

    with pytest.raises(ConfigError, match=message):
        run(toml, tmp_path / "run", "run.steps=1", override, resume=True)


def test_resume_on_changed_text_is_refused(toml, tmp_path):
    run(toml, tmp_path / "run", "run.steps=1")
    with (tmp_path / "train.txt").open("a") as file:
        file.write("more")

    with pytest.raises(ConfigError, match="cannot resume, the corpus has changed"):
        run(toml, tmp_path / "run", "run.steps=1", resume=True)


def test_resume_with_more_steps_continues(toml, tmp_path):
    run(toml, tmp_path / "run", "run.steps=4")

    saved = run(toml, tmp_path / "run", "run.steps=6", resume=True)

    assert saved.name == "step-000006"


def test_out_that_is_a_file_is_refused(toml, tmp_path):
    with pytest.raises(ConfigError, match="must be a directory but is a file"):
        run(toml, tmp_path / "train.txt")
