"""A small run, its records, and how tests interrupt it."""

import json
import os
import random
import resource
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file

from yocobit.packing import checkpoints
from yocobit.training import loop
from yocobit.training.config import load as load_config

MODEL_AND_DATA = """
[model]
preset = "nano"
layers = ["retention", "cross"]

[data]
train = ["train.txt"]
valid = ["valid.txt"]
vocab_size = 270
context = 16
"""
TOML = f"""{MODEL_AND_DATA}
[optim]
optimizer = "muon"
batch_size = 2

[schedule]
kind = "linear"
warmup_steps = 2

[run]
steps = 12
checkpoint_every = 4
eval_every = 6
threads = 1
"""


def write_toml(directory: Path, toml: str = TOML, n_valid: int = 60) -> Path:
    """Write a configuration and its text: words in random order, for a loss that can fall."""
    words = random.Random(0)
    for name, size in (("train.txt", 900), ("valid.txt", n_valid)):
        text = " ".join(words.choice(["def", "return", "x", "y", "+", "\n"]) for _ in range(size))
        (directory / name).write_text(text)
    path = directory / "run.toml"
    path.write_text(toml)
    return path


def run(toml: Path, out: Path, *overrides: str, resume: bool = False) -> Path:
    console = Console(file=open(os.devnull, "w"))  # noqa: SIM115
    return run_with_console(toml, out, console, *overrides, resume=resume)


def run_with_console(
    toml: Path, out: Path, console: Console, *overrides: str, resume: bool = False
) -> Path:
    return loop.train(load_config(toml, overrides), out, resume=resume, console=console)


def records(out: Path) -> list[dict]:
    """Read metrics.jsonl without the times, which differ between runs."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def assert_same_run(out: Path, expected: Path) -> None:
    """All losses and the final weights and optimizer state are equal, to the last bit."""
    assert records(out) == records(expected)
    for name in ("model.safetensors", "optimizer.safetensors"):
        path, other = (checkpoints.last(run_dir) / name for run_dir in (out, expected))
        tensors, others = load_file(path), load_file(other)
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensors[key], others[key]) for key in tensors)


@contextmanager
def full_disk(n_bytes: int):
    """Let no file grow beyond `n_bytes`: writing fails in the kernel, as on a full disk.

    Python would truncate the bytecode of a module that is imported meanwhile, without an error.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    without_bytecode = sys.dont_write_bytecode
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = without_bytecode
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Killed(BaseException):
    """Stands for kill -9 inside the test process; no handler of ours may run."""


def signal_at(step: int, number: int):
    """Return a rate_factor that raises a signal during the step of that number (from 1)."""
    original = loop.rate_factor

    def rate_factor(schedule, done, total):
        if done + 1 == step:
            signal.raise_signal(number)
        return original(schedule, done, total)

    return rate_factor


def raise_at(step: int):
    """Return a rate_factor that raises Killed during the step of that number (from 1)."""
    original = loop.rate_factor

    def rate_factor(schedule, done, total):
        if done + 1 == step:
            raise Killed
        return original(schedule, done, total)

    return rate_factor
