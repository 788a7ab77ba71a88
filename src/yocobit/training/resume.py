"""Resuming a run: its checkpoint, the comparison of its settings, and its state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from yocobit.config import ConfigError
from yocobit.model import Decoder
from yocobit.packing import checkpoints
from yocobit.training import checkpoint
from yocobit.training.config import TrainConfig
from yocobit.training.state import RunState

# Settings that may differ on resume. So may all of [run] but its seed, which shuffles the corpus.
# Corpus and teacher may be stored elsewhere: they are compared by hash.
_MAY_CHANGE = (
    ("data", "train"),
    ("data", "valid"),
    ("data", "tokenizer"),
    ("distill", "teacher"),
)
# Fields of the state that belong to the machine, not to the run.
_MACHINE = ("threads", "processes", "precision", "is_compiled")


@dataclass(frozen=True)
class Resumable:
    """The checkpoint to resume from, and the newer ones that are damaged or incomplete."""

    checkpoint: Path | None = None  # None: a new run
    damaged: Mapping[Path, str] = field(default_factory=dict)  # the damage of each
    torn: Sequence[Path] = ()  # incomplete: written again when the run reaches their step

    @classmethod
    def find(cls, run_dir: Path, resume: bool) -> Resumable:
        """Search a run for its newest intact checkpoint; reads all files of it.

        ConfigError if there is a checkpoint but `resume` is False, or if all are damaged.
        """
        newest = checkpoints.last(run_dir)
        if newest is not None and not resume:
            raise ConfigError(
                f"{run_dir}: already holds a run; pass --resume or choose another --out"
            )
        found, damaged = checkpoint.newest_intact(run_dir)
        if newest is not None and found is None:
            raise ConfigError(
                f"{newest}: {damaged[newest]}, and no earlier checkpoint is intact; choose another "
                "--out to start again"
            )
        step = -1 if found is None else checkpoints.step_of(found)
        return cls(found, damaged, checkpoints.torn(run_dir, step))

    def set_aside_damaged(self) -> list[str]:
        """Rename the damaged checkpoints; return a line about each checkpoint that is skipped."""
        used = self.checkpoint or "the start"
        return [
            *(
                f"warning: {path}: {reason}; kept as {checkpoint.set_aside(path).name}, "
                f"resuming from {used}"
                for path, reason in self.damaged.items()
            ),
            *(f"warning: {path}: is incomplete; resuming from {used}" for path in self.torn),
        ]


def check_settings(config: TrainConfig, run_dir: Path, found: Path) -> None:
    """Raise ConfigError if the settings of a checkpoint differ from those of the run now."""
    # Parsed by TrainConfig, which adds the defaults of settings that an older version lacked.
    train_json = checkpoints.read_train(found)
    try:
        before = TrainConfig.from_dict(train_json, str(found / checkpoints.TRAIN)).to_dict()
    except ConfigError as error:
        if "unknown" not in str(error):
            raise
        raise ConfigError(f"{error}; a newer version of yocobit has written it") from None
    now = config.to_dict()
    now["model"]["vocab_size"] = before["model"]["vocab_size"]  # the tokenizer's, once known
    _check_settings(run_dir, before, now)


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


def restore(
    found: Path, new: RunState, config: TrainConfig, model: Decoder
) -> tuple[RunState, list[str]]:
    """Load a checkpoint; return its state, with the machine's settings of `new`, and warnings."""
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
    return msgspec.structs.replace(state, **machine), warnings
