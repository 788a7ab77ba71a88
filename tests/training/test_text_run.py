"""`yocobit train TEXT`: the configuration follows from the amount of text and the time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from packed_models import text
from rich.console import Console

from yocobit.cli import run
from yocobit.config import ConfigError, preset
from yocobit.packing import checkpoints
from yocobit.pretrained import TINY
from yocobit.training import configure, step_seconds, text_run, train

SHORT = ("--set", "run.steps=2", "--set", "run.eval_tokens=64", "--set", "run.threads=1",
         "--set", "data.context=32", "--set", "optim.batch_size=1", "--set",
         "run.sample_every=0")  # fmt: skip


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    monkeypatch.setattr(text_run, "default_threads", lambda: 2)


def file_of(directory: Path, size: int, name: str = "my.txt") -> Path:
    """Return a file of that size, which takes no space."""
    path = directory / name
    with path.open("wb") as stream:
        stream.truncate(size)
    return path


@pytest.mark.parametrize(
    ("size", "minutes", "name"),
    [
        (399_999, 60, "nano"),
        (400_000, 2, "tiny"),
        (400_000, 1.9, "nano"),
        (99_999_999, 100_000, "tiny"),
        (100_000_000, 750, "small"),
        (100_000_000, 749, "tiny"),
    ],
)
def test_the_preset_follows_from_text_and_time(tmp_path, size, minutes, name):
    config, reason = configure(str(file_of(tmp_path, size)), minutes=minutes)

    assert config.model == preset(name)
    assert config.run.minutes == minutes
    assert reason.startswith(f"preset {name}: ") and f"{minutes:g} minutes on 2 threads" in reason


def test_the_reason_names_when_a_larger_model_is_taken(tmp_path):
    _, small_text = configure(str(file_of(tmp_path, 5000)), minutes=1)
    _, some_text = configure(str(file_of(tmp_path, 20_000_000)))

    assert small_text == (
        "preset nano: 0.0 MB of text, 1 minute on 2 threads; tiny needs 0.4 MB and 2 minutes"
    )
    assert some_text == (
        "preset tiny: 20 MB of text, 10 minutes on 2 threads; small needs 100 MB and 12 hours"
    )


def test_text_is_that_of_all_files_and_more_if_they_are_compressed(tmp_path):
    file_of(tmp_path, 150_000, "a.txt")
    file_of(tmp_path, 100_000, "b.jsonl.gz")

    directory, _ = configure(str(tmp_path))
    single, _ = configure(str(tmp_path / "a.txt"))

    assert (directory.model, single.model) == (preset("tiny"), preset("nano"))
    assert directory.data.train == (str(tmp_path),)


@pytest.mark.parametrize(
    ("size", "minutes", "every"), [(1000, 1, 200), (10**6, 2, 20), (10**6, 10, 200)]
)
def test_evaluations_are_spread_over_the_run(tmp_path, size, minutes, every):
    config, _ = configure(str(file_of(tmp_path, size)), minutes=minutes)

    assert config.run.eval_every == config.run.checkpoint_every == config.run.sample_every == every


@pytest.mark.parametrize(
    ("seconds", "n_warmup"), [(0.1, 20), (1.2, 20), (2.0, 12), (60.0, 1), (1000.0, 1)]
)
def test_the_warmup_of_a_short_run_is_a_fifth_of_its_steps(tmp_path, seconds, n_warmup):
    path = str(file_of(tmp_path, 1000))

    config, _ = configure(path, minutes=2, step_seconds=lambda config, enough_s: seconds)

    assert config.schedule.warmup_steps == n_warmup


@pytest.mark.parametrize(
    ("size", "seconds", "name"),
    [
        (10**6, {"tiny": 2.4}, "tiny"),  # 50 steps in two minutes
        (10**6, {"tiny": 2.41, "nano": 0.3}, "nano"),
        (10**6, {"tiny": 60.0, "nano": 5.0}, "nano"),  # there is none that is smaller
        (1000, {"nano": 5.0}, "nano"),
    ],
)
def test_a_slow_machine_trains_a_smaller_preset(tmp_path, size, seconds, name):
    timed = []

    def step_seconds(config, enough_s):
        timed.append(next(each for each in seconds if config.model == preset(each)))
        assert enough_s == 2.4
        return seconds[timed[-1]]

    config, reason = configure(str(file_of(tmp_path, size)), minutes=2, step_seconds=step_seconds)

    assert config.model == preset(name)
    assert timed == list(seconds)
    assert config.run.eval_every <= max(10, 120 / seconds[name] / 5)
    slow = "a step of tiny takes 2.4 s, and fewer than 50 fit"
    assert (slow in reason) == (seconds.get("tiny") == 2.41)
    assert reason.startswith(f"preset {name}: {size / 1e6:.1f} MB of text, 2 minutes on 2 threads")


@pytest.mark.parametrize(
    ("overrides", "minutes", "timed", "start"),
    [
        (["run.steps=7"], None, 0, "preset tiny: "),  # steps do not depend on the speed
        (["model.norm_eps=1e-6"], 2, 1, "preset tiny, changed by --set: "),
    ],
)
def test_settings_chosen_by_hand_are_kept_on_a_slow_machine(
    tmp_path, overrides, minutes, timed, start
):
    calls = []

    def step_seconds(config, enough_s):
        calls.append(config)
        return 1000.0

    path = str(file_of(tmp_path, 10**6))
    config, reason = configure(
        path, minutes=minutes, overrides=overrides, step_seconds=step_seconds
    )

    assert len(calls) == timed
    assert config.model.d_model == preset("tiny").d_model
    assert reason.startswith(start)


def test_timing_a_step_changes_no_loss(tmp_path):
    file = tmp_path / "my.txt"
    file.write_text(text())
    settings, _ = configure(str(file), overrides=SHORT[1::2])
    losses = {}

    for name in ("not timed", "timed"):
        if name == "timed":
            assert step_seconds(settings, 0.0) > 0
        train(settings, tmp_path / name, resume=False, console=Console(quiet=True))
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses[name] = [(each["loss"], each["grad_norm"]) for each in map(json.loads, lines)]

    assert losses["timed"] == losses["not timed"]
    assert len(losses["timed"]) == 2


@pytest.mark.parametrize(
    ("enough_s", "clock", "expected"),
    [
        (1.0, [0.0, 0.9], 0.9),
        (1.0, [0.0, 2.0, 2.0, 2.5], 0.5),  # the first step included a warm-up
        (1.0, [0.0, 3.1], 3.1),  # too slow in any case
    ],
)
def test_a_second_step_is_timed_if_it_may_make_a_difference(
    tmp_path, monkeypatch, enough_s, clock, expected
):
    settings, _ = configure(str(file_of(tmp_path, 1000)), overrides=SHORT[1::2])
    times = iter(clock)
    monkeypatch.setattr("yocobit.training.step_time.time.monotonic", lambda: next(times))

    assert step_seconds(settings, enough_s) == expected
    assert next(times, None) is None


def test_overrides_apply_and_a_missing_text_is_refused(tmp_path):
    path = str(file_of(tmp_path, 1000))

    config, _ = configure(path, overrides=["model.preset=tiny", "run.steps=7"])

    assert config.model.d_model == preset("tiny").d_model
    assert (config.run.steps, config.run.minutes) == (7, None)
    with pytest.raises(ConfigError, match=r"none\.txt: no such file or directory"):
        configure(str(tmp_path / "none.txt"))


def test_a_run_from_a_model_has_its_shape_and_tokenizer_and_smaller_steps(tmp_path):
    path = str(file_of(tmp_path, 1000))

    config, reason = configure(path, init=TINY)

    assert config.model.cross_rope == "none"  # of the packaged model
    assert config.data.tokenizer == str(TINY / "tokenizer.json")
    assert config.optim.learning_rate < configure(path)[0].optim.learning_rate
    assert reason.startswith(f"model of {TINY}: ")


def test_a_text_is_trained_on_and_resumed_with_the_settings_of_the_run(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("my.txt").write_text(text())
    run(["train", "my.txt", "--out", "run", *SHORT])
    first = capsys.readouterr().out
    Path("other").mkdir()
    Path("file").touch()
    monkeypatch.setattr("yocobit.training.step_seconds", lambda *_: pytest.fail("timed a step"))
    for out, words in (("run", "already holds a run"), ("file", "must be a directory")):
        with pytest.raises(ConfigError, match=words):
            run(["train", "my.txt", "--out", out])
    for name in ("yocobit.training.step_seconds", "yocobit.training.text_run._sections"):
        monkeypatch.setattr(name, None)  # a resumed run does neither measure nor choose again

    run(["train", "my.txt", "--out", "run", "--resume", "--set", "run.steps=3"])

    assert first.startswith("preset nano: 0.0 MB of text, 10 minutes on 2 threads")
    assert "settings of run/checkpoints/step-000002" in capsys.readouterr().out
    last = checkpoints.last(Path("run"))
    assert last is not None and last.name == "step-000003"
    stored = json.loads((last / "train.json").read_text())
    assert stored["data"]["context"] == 32 and stored["run"]["steps"] == 3


def test_minutes_override_those_of_a_configuration(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("yocobit.training.train", lambda config, *_, **__: seen.append(config))
    config = Path(__file__).parents[2] / "configs" / "tiny.toml"

    run(["train", str(config), "--out", str(tmp_path / "run"), "--minutes", "3"])

    assert seen[0].run.minutes == 3


def test_tiny_names_the_packaged_model_unless_there_is_such_a_run(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("yocobit.training.train", lambda *_, init, **__: seen.append(init))
    monkeypatch.chdir(tmp_path)
    Path("my.txt").write_text(text())

    run(["train", "my.txt", "--out", "run", "--init", "tiny"])
    Path("tiny").mkdir()
    with pytest.raises(ConfigError, match="tiny: holds no complete checkpoint"):
        run(["train", "my.txt", "--out", "run", "--init", "tiny"])

    assert seen == [TINY]
