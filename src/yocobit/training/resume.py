"""Resuming a run: the checkpoint, the check that it is of the same run, and its state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from yocobit.config import ConfigError
from yocobit.model import Decoder
from yocobit.packing import checkpoints
from yocobit.training import checkpoint
from yocobit.training.config import TrainConfig
from yocobit.training.state import RunState

# Settings that may differ on resume, and all of [run] but its seed, which shuffles the corpus.
# Corpus and teacher are compared by hash, wherever they are stored.
_MAY_CHANGE = (
    ("data", "train"),
    ("data", "valid"),
    ("data", "tokenizer"),
    ("distill", "teacher"),
)
# Files of a run that was killed before its first checkpoint.
_RUN_FILES = {"data", "run.json", "metrics.jsonl", "checkpoints"}
# Fields of the state that belong to the machine, not to the run.
_MACHINE = ("threads", "processes", "precision", "is_compiled")


def find_resumable(config: TrainConfig, run_dir: Path, resume: bool) -> Path | None:
    """Return the checkpoint to resume from, None for a new run; ConfigError if settings differ."""
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError(f"{run_dir}: must be a directory but is a file; choose another --out")
    found = checkpoints.last(run_dir)
    if found is None:
        if resume:
            _check_may_start(run_dir)
        return None
    if not resume:
        raise ConfigError(f"{run_dir}: already holds a run; pass --resume or choose another --out")
    # Through TrainConfig: settings that an older version did not have get their defaults.
    train_json = checkpoints.read_train(found)
    before = TrainConfig.from_dict(train_json, str(found / checkpoints.TRAIN)).to_dict()
    now = config.to_dict()
    now["model"]["vocab_size"] = before["model"]["vocab_size"]  # the tokenizer's, once known
    _check_settings(run_dir, before, now)
    return found


def _check_settings(run_dir: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    for section in now | before:
        old_fields, new_fields = before.get(section, {}), now.get(section, {})
        names = ("seed",) if section == "run" else new_fields | old_fields
        for name in names:
            old, new = old_fields.get(name), new_fields.get(name)
            if old != new and (section, name) not in _MAY_CHANGE:
                raise ConfigError(
                    f"{run_dir}: cannot resume, {section}.{name} was {old!r} and is now {new!r}; "
                    "restore it, or choose another --out"
                )


def _check_may_start(run_dir: Path) -> None:
    """Raise ConfigError where there is no run: --out is probably misspelt.

    An empty directory is accepted: torchrun restarts its processes with the same command, which
    therefore has --resume at the first start, too.
    """
    if not run_dir.exists():
        raise ConfigError(
            f"{run_dir}: no such run to resume; correct --out, or omit --resume to start one"
        )
    names = {path.name for path in run_dir.iterdir() if not path.name.startswith(".")}
    if names and not names & _RUN_FILES:
        raise ConfigError(
            f"{run_dir}: has no run to resume but has {min(names)}; correct --out, or omit "
            "--resume to start one"
        )


def restore(
    found: Path, new: RunState, config: TrainConfig, model: Decoder
) -> tuple[RunState, list[str]]:
    """Load a checkpoint; return its state with the machine of `new`, and warnings."""
    state = checkpoint.load_state(found)
    for name, subject in (("corpus_sha256", "corpus"), ("teacher_sha256", "teacher")):
        if getattr(state, name) != getattr(new, name):
            raise ConfigError(f"{found}: cannot resume, the {subject} has changed since")
    checkpoint.load_weights(model, found)
    if config.run.minutes is None:
        state.total_steps = config.run.steps
    elif config.run.minutes != checkpoints.read_train(found)["run"].get("minutes"):
        state.total_steps = None  # converted again
    warnings = []
    if state.arithmetic != new.arithmetic:
        warnings.append(
            f"warning: {new.arithmetic} now, {state.arithmetic} before: losses will differ from "
            "those of an uninterrupted run"
        )
    machine = {name: getattr(new, name) for name in _MACHINE}
    return replace(state, **machine), warnings
