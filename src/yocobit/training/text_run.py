"""The configuration of a run on text, without a TOML file.

The amount of text and the time determine the model: a larger one needs more text, which it
memorises otherwise, and more steps to surpass a smaller one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yocobit.config import preset
from yocobit.data.config import SourceConfig
from yocobit.data.sources import list_files
from yocobit.hardware.host import default_threads
from yocobit.packing import checkpoints
from yocobit.training.config import TrainConfig, complete

MINUTES = 10.0  # of a run, by default
_CONTEXT, _BATCH = 256, 8
_COMPRESSION = 3  # text compared with its .gz, .zst or .parquet file
_EVALUATIONS = 10  # of a run, approximately


@dataclass(frozen=True)
class _Choice:
    """A preset of the model, and the least text and time that it is chosen for."""

    preset: str
    least_bytes: int  # of text
    least_minutes: float  # of one CPU
    tokens_per_s: float  # of one CPU, approximate; sets the interval of evaluations


# Largest first; the first whose bounds hold is chosen.
_CHOICES = (
    _Choice("small", 100_000_000, 1500.0, 250),
    _Choice("tiny", 400_000, 4.0, 4_000),
    _Choice("nano", 0, 0.0, 40_000),
)


def configure(
    text: str,
    *,
    minutes: float | None = None,
    overrides: Sequence[str] = (),
    init: Path | None = None,
    resumed: Path | None = None,
) -> tuple[TrainConfig, str]:
    """Return the configuration of a run on a file, directory or glob, and a line that explains it.

    A run that starts from `init` has its model and tokenizer, as in load(). The run in `resumed`
    keeps the settings of its last checkpoint; `minutes` and overrides may change them.
    """
    last = checkpoints.last(resumed) if resumed is not None else None
    if last is not None:
        sections, reason = checkpoints.read_train(last), f"settings of {last}"
        sections["data"]["train"] = [text]
        init = None  # the sections have its model and tokenizer
        if minutes is not None:
            overrides = [f"run.minutes={minutes}", *overrides]
    else:
        sections, reason = _sections(text, minutes or MINUTES, default_threads(), init)
    return complete(sections, overrides, init, text), reason


def _sections(
    text: str, minutes: float, threads: int, init: Path | None
) -> tuple[dict[str, Any], str]:
    """Return the settings of a new run, and the reason for them."""
    n_bytes, cpu_minutes = _amount(text), minutes * threads
    given = f"{_megabytes(n_bytes)} of text, {minutes:g} minutes on {threads} threads"
    if init is not None:
        choice, reason = _CHOICES[1], f"model of {init}: {given}"
    else:
        choice = next(
            each
            for each in _CHOICES
            if n_bytes >= each.least_bytes and cpu_minutes >= each.least_minutes
        )
        reason = f"preset {choice.preset}: {given}; {_rule(choice, threads)}"
    every = _evaluation_steps(choice.tokens_per_s * cpu_minutes * 60)
    sections: dict[str, Any] = {
        "data": {"train": [text], "valid_every": 20, "context": _CONTEXT},
        # Starting from trained weights, smaller steps keep what they have learned.
        "optim": {
            "optimizer": "muon",
            "learning_rate": 2e-2 if init is None else 3e-3,
            "matrix_learning_rate": 8e-3 if init is None else 1.2e-3,
            "batch_size": _BATCH,
            "weight_decay": 0.0,
        },
        "schedule": {"kind": "linear", "warmup_steps": 20},
        "run": {
            "minutes": minutes,
            "eval_every": every,
            "eval_tokens": 16384,
            "checkpoint_every": every,
            "sample_every": every,
        },
    }
    if init is None:
        sections["model"] = {"preset": choice.preset}
        sections["data"]["vocab_size"] = preset(choice.preset).vocab_size
    return sections, reason


def _amount(text: str) -> int:
    """Return the approximate number of bytes of text in the files."""
    files = list_files(SourceConfig(path=text), ())
    return sum(
        file.size * (_COMPRESSION if file.suffix.endswith((".gz", ".zst", ".parquet")) else 1)
        for file in files
    )


def _rule(choice: _Choice, threads: int) -> str:
    """Return the text and time that the next larger preset needs."""
    i = _CHOICES.index(choice)
    larger = _CHOICES[i - 1] if i else None
    if larger is None:
        return "--set model.preset=tiny selects a smaller model"
    hours = larger.least_minutes / threads / 60
    time = f"{hours:.0f} hours" if hours >= 1 else f"{hours * 60:g} minutes"
    return f"{larger.preset} needs {_megabytes(larger.least_bytes)} and {time}"


def _evaluation_steps(n_tokens: float) -> int:
    """Return the steps between evaluations, a round number."""
    steps = max(10.0, n_tokens / (_CONTEXT * _BATCH) / _EVALUATIONS)
    unit = 10 ** int(math.log10(steps))
    return next(each * unit for each in (5, 2, 1) if each * unit <= steps)


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes < 10e6 else f"{n_bytes / 1e6:,.0f} MB"
