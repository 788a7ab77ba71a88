"""Runs of two processes: the losses and the checkpoints of one."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from yocobit import packing
from yocobit.config import ConfigError
from yocobit.training import checkpoint, loop
from yocobit.training.config import load as load_config
from yocobit.training.distributed import Processes

TOML = """
[model]
preset = "nano"

[data]
train = ["train.txt"]
valid = ["valid.txt"]
vocab_size = 270
context = 16

[optim]
batch_size = 2
accumulation = 3

[run]
steps = 6
checkpoint_every = 3
eval_every = 3
sample_every = 3
sample_tokens = 4
threads = 1
"""

# Of each run: what is changed in the configuration. Parts of a batch are not the same for one
# process (2, 2, 2 windows) and for two (2 and 1 each).
RUNS = {
    "fsdp-adamw": ["optim.optimizer=adamw", "model.tie_embeddings=true"],
    "fsdp-muon": ["optim.optimizer=muon"],
    "ddp-adamw": ["optim.optimizer=adamw", "model.tie_embeddings=true", "run.parallel=ddp"],
    "ddp-muon": ["optim.optimizer=muon", "run.parallel=ddp"],
}

# Runs of a configuration one after the other: [out, overrides, resume, [rank, step, signal]], the
# last of which is raised in that process while it does that step.
WORKER = """
import json, os, signal, sys
from pathlib import Path
import torch
from rich.console import Console
from yocobit.training import load, loop
from yocobit.cli import report_errors

torch.cpu.get_capabilities = dict  # float32 products
original = loop.rate_factor

def main():
    toml, runs = sys.argv[1:]
    for out, overrides, resume, raised in json.loads(runs):
        def rate_factor(schedule, done, total):
            if raised and raised[:2] == [int(os.environ["RANK"]), done + 1]:
                signal.raise_signal(raised[2])
            return original(schedule, done, total)
        loop.rate_factor = rate_factor
        loop.train(load(Path(toml), overrides), Path(out), resume=resume, console=Console())

report_errors(main)
"""


@pytest.fixture(scope="module")
def toml(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("distributed")
    words = random.Random(0)
    for name, size in (("train.txt", 900), ("valid.txt", 160)):
        text = " ".join(words.choice(["def", "return", "x", "y", "+", "\n"]) for _ in range(size))
        (directory / name).write_text(text)
    path = directory / "run.toml"
    path.write_text(TOML)
    return path


def run_alone(toml: Path, out: Path, *overrides: str, resume: bool = False) -> Path:
    console = Console(file=open(os.devnull, "w"))  # noqa: SIM115
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", dict)  # float32 products
        return loop.train(load_config(toml, overrides), out, resume=resume, console=console)


def torchrun(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env=environment
    )


def run_two(toml: Path, runs: list) -> subprocess.CompletedProcess:
    worker = toml.parent / "worker.py"
    worker.write_text(WORKER)
    return torchrun(str(worker), str(toml), json.dumps(runs))


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def outs(toml) -> Path:
    """A directory with NAME-1 and NAME-2, each of RUNS by one process and by two; and what two
    processes made of runs that one has begun, or that a signal has ended."""
    directory = toml.parent
    for name, overrides in RUNS.items():
        run_alone(toml, directory / f"{name}-1", *overrides)
        run_alone(toml, directory / f"{name}-12", *overrides, "run.steps=3")
    runs = [[str(directory / f"{name}-2"), RUNS[name], False, None] for name in RUNS]
    runs += [[str(directory / f"{name}-12"), RUNS[name], True, None] for name in RUNS]
    runs += [[str(directory / "stopped"), RUNS["fsdp-muon"], False, [1, 2, 15]]]

    result = run_two(toml, runs)

    assert result.returncode == 0, result.stderr
    (directory / "stdout").write_text(result.stdout)
    (directory / "stderr").write_text(result.stderr)
    return directory


def assert_same_losses(out: Path, expected: Path) -> None:
    for record, other in zip(records(out), records(expected), strict=True):
        for key in ("step", "tokens", "lr"):
            assert record[key] == other[key]
        for key in ("loss", "valid_bits_per_byte"):
            assert record.get(key) == pytest.approx(other.get(key), rel=1e-6), record["step"]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_have_the_losses_of_one(outs, name):
    assert_same_losses(outs / f"{name}-2", outs / f"{name}-1")


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_resume_what_one_began(outs, name):
    assert_same_losses(outs / f"{name}-12", outs / f"{name}-1")


@pytest.mark.parametrize("name", RUNS)
def test_placeholder(outs, toml, tmp_path, name):
    ...
