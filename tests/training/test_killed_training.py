"""`yocobit train`, killed at random moments, ends with the bytes of an uninterrupted run."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_runs import assert_same_run, run

from yocobit.packing import checkpoints

STEPS = 40
# Most of the time, and so most of the kills, is in checkpoints and evaluations.
SETTINGS = (f"run.steps={STEPS}", "run.checkpoint_every=2", "run.eval_every=5")


def start(toml: Path, out: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "yocobit", "train", str(toml), "--out", str(out), "--resume",
         *(f"--set={setting}" for setting in SETTINGS)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def last_step(out: Path) -> int:
    """Return the number of recorded steps, including those that a resume discards."""
    try:
        return (out / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def kill_at(process: subprocess.Popen, is_reached, seconds: float) -> None:
    """Kill a process `seconds` after `is_reached()` holds; it must still be running then."""
    while not is_reached() and process.poll() is None:
        time.sleep(0.002)
    time.sleep(seconds)
    process.kill()
    error = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL and error == "", error


@pytest.mark.slow
def test_process_killed_at_random_moments_ends_with_the_bytes_of_an_uninterrupted_one(
    toml, tmp_path
):
    moments = random.Random(0)
    straight, out = tmp_path / "straight", tmp_path / "killed"
    run(toml, straight, *SETTINGS)
    out.mkdir()

    # First during data preparation, then some steps later each time, anywhere in a step.
    kill_at(start(toml, out), lambda: any(out.iterdir()), moments.uniform(0, 0.3))
    for _ in range(3):
        step = last_step(out) + moments.randint(1, 10)
        kill_at(start(toml, out), lambda step=step: last_step(out) > step, moments.uniform(0, 0.02))
    last = start(toml, out)
    error = last.communicate()[1]

    assert last.returncode == 0, error
    assert_same_run(out, straight)
    saved, expected = checkpoints.last(out), checkpoints.last(straight)
    assert saved.name == expected.name == f"step-{STEPS:06d}"
    for name in ("model.safetensors", "optimizer.safetensors", "tokenizer.json", "config.json"):
        assert (saved / name).read_bytes() == (expected / name).read_bytes()
    assert not list((out / "checkpoints").glob(".partial*"))
