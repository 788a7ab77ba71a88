"""Going on with a run: which checkpoint, whether it is of the same run, and what it holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from yocobit.config import ConfigError
from yocobit.model import Decoder
from yocobit.training import checkpoint
from yocobit.training.checkpoint import RunState
from yocobit.training.config import TrainConfig

# On resume, beside [run] without its seed, which shuffles the text. That text and teacher are the
# same is checked by hash, wherever they lie now.
_MAY_CHANGE = (
    ("data", "train"),
    ("data", "valid"),
    ("data", "tokenizer"),
    ("distill", "teacher"),
)
# What a run leaves before its first checkpoint.
_OF_A_RUN = {"data", "run.json", "metrics.jsonl", "checkpoints"}
# Of the state: what belongs to the machine that goes on.
_MACHINE = ("threads", "processes", "precision", "is_compiled")


def find_resumable(config: TrainConfig, run_dir: Path, resume: bool) -> Path | None:
    """Return the checkpoint to resume from, None for a new run; ConfigError if it is another's."""
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError(f"{run_dir}: must be a directory but is a file; choose another --out")
    found = checkpoint.last(run_dir)
    if found is None:
        if resume:
            _check_may_begin(run_dir)
        return None
    if not resume:
        raise ConfigError(f"{run_dir}: already holds a run; pass --resume or choose another --out")
    # Through TrainConfig: an older run has today's defaults where it has no setting.
    train_json = checkpoint.load_train(found)
    before = TrainConfig.from_dict(train_json, str(found / checkpoint.TRAIN)).to_dict()
    now = config.to_dict()
    now["model"]["vocab_size"] = before["model"]["vocab_size"]  # the tokenizer's, once known
    for section in now | before:
        old_fields, new_fields = before.get(section, {}), now.get(section, {})
        names = ("seed",) if section == "run" else new_fields | old_fields
        for name in names:
            old, new = old_fields.get(name), new_fields.get(name)
            if old != new and (section, name) not in _MAY_CHANGE:
                raise ConfigError(
                    f"{run_dir}: cannot resume, {section}.{name} was {old!r} and is now {new!r}; "
                    "set it back, or choose another --out"
                )
    return found


def _check_may_begin(run_dir: Path) -> None:
    """Refuse to resume where no run was begun: a name that was mistyped.

    An empty directory says that one is meant, as torchrun starts its processes anew with the
    command that it has, --resume from the first time on.
    """
    if not run_dir.exists():
        raise ConfigError(
            f"{run_dir}: no such run to resume; correct --out, or leave out --resume to begin it"
        )
    names = {path.name for path in run_dir.iterdir() if not path.name.startswith(".")}
    if names and not names & _OF_A_RUN:
        raise ConfigError(
            f"{run_dir}: holds no run to resume but {min(names)}; correct --out, or leave out "
            "--resume to begin one"
        )


def restore(
    found: Path, new: RunState, config: TrainConfig, model: Decoder
) -> tuple[RunState, list[str]]:
    """Load a checkpoint; return its state, for the machine of the `new` one, and warnings."""
    state = checkpoint.load_state(found)
    for name, what in (("corpus_sha256", "text"), ("teacher_sha256", "teacher")):
        if getattr(state, name) != getattr(new, name):
            raise ConfigError(f"{found}: cannot resume, the {what} has changed since")
    checkpoint.load_weights(model, found)
    if config.run.minutes is None:
        state.total_steps = config.run.steps
    elif config.run.minutes != checkpoint.load_train(found)["run"].get("minutes"):
        state.total_steps = None  # to be planned anew
    warnings = []
    if state.arithmetic != new.arithmetic:
        warnings.append(
            f"warning: {new.arithmetic} now, {state.arithmetic} before: losses will differ from "
            "those of a run that never stopped"
        )
    machine = {name: getattr(new, name) for name in _MACHINE}
    return replace(state, **machine), warnings
