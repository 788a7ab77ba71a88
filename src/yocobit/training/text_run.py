"""The configuration of a run on text, without a TOML file.

The amount of text and the time determine the preset of the model. A larger model memorises a short
text, and needs more steps before it surpasses a smaller one. If a timed step shows that this
machine is too slow for a preset, the next smaller one is selected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
_LEAST_STEPS = 50  # of a run; a smaller preset is selected if fewer fit in its time
_WARMUP_STEPS, _WARMUP_SHARE = 20, 0.2  # at most, and of the steps of a short run


@dataclass(frozen=True)
class _Choice:
    """A preset of the model, and the least text and time for which it is chosen."""

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


StepSeconds = Callable[[TrainConfig, float], float]  # yocobit.training.step_time.step_seconds


def configure(
    text: str,
    *,
    minutes: float | None = None,
    overrides: Sequence[str] = (),
    init: Path | None = None,
    resumed: Path | None = None,
    step_seconds: StepSeconds | None = None,
) -> tuple[TrainConfig, str]:
    """Return the configuration of a run on a file, directory or glob, and a line that explains it.

    A run that starts from `init` has its model and tokenizer, as in load(). The run in `resumed`
    keeps the settings of its last checkpoint; `minutes` and overrides may change them. Without
    `step_seconds`, the speed is that of a typical machine.
    """
    last = checkpoints.last(resumed) if resumed is not None else None
    if last is None:
        minutes = MINUTES if minutes is None else minutes
        return _new(text, minutes, overrides, init, step_seconds)
    sections = checkpoints.read_train(last)
    sections["data"]["train"] = [text]
    if minutes is not None:
        overrides = [f"run.minutes={minutes}", *overrides]
    # The sections have the model and tokenizer of `init`.
    return complete(sections, overrides, None, text), f"settings of {last}"


def _new(
    text: str,
    minutes: float,
    overrides: Sequence[str],
    init: Path | None,
    step_seconds: StepSeconds | None,
) -> tuple[TrainConfig, str]:
    """Return the configuration of a new run, and the reason for it."""
    n_bytes, threads = _amount(text), default_threads()
    unit = "minute" if minutes == 1 else "minutes"
    given = f"{_megabytes(n_bytes)} of text, {minutes:g} {unit} on {threads} threads"
    choices = _suited(n_bytes, minutes * threads)
    if init is not None:
        choices, reason = [_CHOICES[1]], f"model of {init}: {given}"
    elif any(each.startswith("model.") for each in overrides):
        choices = choices[:1]
        reason = f"preset {choices[0].preset}, changed by --set: {given}"
    else:
        reason = f"preset {choices[0].preset}: {given}; {_rule(choices[0], threads)}"
    for choice in choices:
        n_steps = choice.tokens_per_s * minutes * 60 * threads / (_CONTEXT * _BATCH)
        config = complete(_sections(text, minutes, choice, init, n_steps), overrides, init, text)
        if step_seconds is None or config.run.minutes is None:
            break
        seconds = step_seconds(config, config.run.minutes * 60 / _LEAST_STEPS)
        n_steps = config.run.minutes * 60 / seconds
        config = complete(_sections(text, minutes, choice, init, n_steps), overrides, init, text)
        if n_steps >= _LEAST_STEPS:
            break
        if choice is not choices[-1]:
            smaller = choices[choices.index(choice) + 1].preset
            reason = (
                f"preset {smaller}: {given}; a step of {choice.preset} takes {seconds:.2g} s, and "
                f"fewer than {_LEAST_STEPS} fit"
            )
    return config, reason


def _suited(n_bytes: int, cpu_minutes: float) -> list[_Choice]:
    """Return the presets whose bounds hold on a typical machine, the largest first."""
    return [
        choice
        for choice in _CHOICES
        if n_bytes >= choice.least_bytes and cpu_minutes >= choice.least_minutes
    ]


def _sections(
    text: str, minutes: float, choice: _Choice, init: Path | None, n_steps: float
) -> dict[str, Any]:
    """Return the settings of a new run of about `n_steps`."""
    every = _evaluation_steps(n_steps)
    sections: dict[str, Any] = {
        "data": {"train": [text], "valid_every": 20, "context": _CONTEXT},
        # From trained weights, lower rates preserve what the model has learned.
        "optim": {
            "optimizer": "muon",
            "learning_rate": 2e-2 if init is None else 3e-3,
            "matrix_learning_rate": 8e-3 if init is None else 1.2e-3,
            "batch_size": _BATCH,
            "weight_decay": 0.0,
        },
        "schedule": {
            "kind": "linear",
            "warmup_steps": max(1, min(_WARMUP_STEPS, int(_WARMUP_SHARE * n_steps))),
        },
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
    return sections


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


def _evaluation_steps(n_steps: float) -> int:
    """Return the steps between evaluations, a round number."""
    steps = max(10.0, n_steps / _EVALUATIONS)
    unit = 10 ** int(math.log10(steps))
    return next(each * unit for each in (5, 2, 1) if each * unit <= steps)


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes < 10e6 else f"{n_bytes / 1e6:,.0f} MB"
