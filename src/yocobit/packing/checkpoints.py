"""Checkpoints on disk, RUN/checkpoints/step-000100/: their files, search and completeness.

    model.safetensors      master weights            config.json   ModelConfig
    optimizer.safetensors  state of every parameter  train.json    TrainConfig
    tokenizer.json                                   state.json    progress, and each file's size
    tokenizer_config.json, generation_config.json    for transformers
    modeling_yocobit.py    for transformers, with trust_remote_code=True
    chat_template.jinja    if the training text has conversations

Needs no torch; yocobit.training.checkpoint writes and loads checkpoints. A directory is incomplete
if files are missing or differ in size from state.json; `last` and `best` skip it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from yocobit.config import ConfigError
from yocobit.packing.format import CHAT_TEMPLATE, CONFIG, MODEL, TOKENIZER, is_packed

__all__ = [
    "AUTO_MAP",
    "BEST",
    "CHAT_TEMPLATE",
    "CONFIG",
    "DIRECTORY",
    "LAST",
    "MODEL",
    "OPTIMIZER",
    "PARTIAL",
    "REMOTE_CODE",
    "STATE",
    "TOKENIZER",
    "TRAIN",
    "best",
    "complete",
    "directory_of",
    "find",
    "is_complete",
    "last",
    "read_state",
    "read_train",
    "step_of",
    "write_remote_code",
]

OPTIMIZER = "optimizer.safetensors"
TRAIN = "train.json"
STATE = "state.json"
DIRECTORY = "checkpoints"
BEST, LAST = "best", "last"  # find() resolves RUN/checkpoints/best and .../last; no directories
PARTIAL = ".partial-"  # prefix of a directory that is being written or deleted

# `auto_map` in config.json: where transformers finds the classes, with trust_remote_code=True.
REMOTE_CODE = "modeling_yocobit.py"
_CLASSES = {
    "AutoConfig": "YocobitConfig",
    "AutoModel": "YocobitModel",
    "AutoModelForCausalLM": "YocobitForCausalLM",
    "AutoModelForSequenceClassification": "YocobitForSequenceClassification",
}
AUTO_MAP = {auto: f"{REMOTE_CODE.removesuffix('.py')}.{name}" for auto, name in _CLASSES.items()}

_REQUIRED = {MODEL, OPTIMIZER, CONFIG, TRAIN, TOKENIZER}
_NAME = re.compile(r"step-(\d+)")


def directory_of(run_dir: Path, step: int) -> Path:
    """Return the directory of the checkpoint of a step."""
    return run_dir / DIRECTORY / f"step-{step:06d}"


def step_of(checkpoint: Path) -> int:
    """Return the step in a directory's name; -1 for other names."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1


def complete(run_dir: Path) -> list[Path]:
    """Return the complete checkpoints of a run, ordered by step."""
    found = {step_of(path): path for path in (run_dir / DIRECTORY).glob("step-*")}
    return [found[step] for step in sorted(found) if step >= 0 and is_complete(found[step])]


def is_complete(checkpoint: Path) -> bool:
    """Whether every file is present with the size that state.json records."""
    try:
        sizes = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["size_bytes"]
        return sizes.keys() >= _REQUIRED and all(
            (checkpoint / name).stat().st_size == size for name, size in sizes.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def last(run_dir: Path) -> Path | None:
    """Return the complete checkpoint with the largest step; None if there is none."""
    found = complete(run_dir)
    return found[-1] if found else None


def best(run_dir: Path) -> Path | None:
    """Return the complete checkpoint with the lowest bits per byte; None if there is none."""
    newest = last(run_dir)
    step = newest and read_state(newest).get("best_step")
    return next((path for path in complete(run_dir) if step_of(path) == step), None)


def write_remote_code(directory: Path) -> None:
    """Write the code that AUTO_MAP names: it imports the classes of this package."""
    (directory / REMOTE_CODE).write_text(
        '"""The model in transformers. Needs: pip install \'yocobit[hf]\'"""\n\n'
        f"from yocobit.hf import {', '.join(_CLASSES.values())}  # noqa: F401\n",
        encoding="utf-8",
    )


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Read state.json."""
    fields: dict[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    return fields


def read_train(checkpoint: Path) -> dict[str, Any]:
    """Read train.json: the result of TrainConfig.to_dict."""
    fields: dict[str, Any] = json.loads((checkpoint / TRAIN).read_text(encoding="utf-8"))
    return fields


def find(path: Path) -> Path:
    """Return the checkpoint that `path` names.

    `path` is a checkpoint, a run (for its last checkpoint), or RUN/checkpoints/best or .../last.
    """
    named = {BEST: best, LAST: last}.get(path.name)
    if named is not None and path.parent.name == DIRECTORY and not path.exists():
        if (checkpoint := named(path.parent.parent)) is None:
            raise ConfigError(f"{path}: the run has no such checkpoint yet")
        return checkpoint
    if not path.exists():
        raise ConfigError(f"{path}: no such run or checkpoint")
    if path.is_file():
        raise ConfigError(f"{path}: must be a run or a checkpoint but is a file; name a directory")
    if is_packed(path):
        raise ConfigError(
            f"{path}: is a packed model, which cannot be trained, distilled or packed again; "
            "name the run or checkpoint that it was packed from"
        )
    if (path / MODEL).is_file() and (path / CONFIG).is_file():
        return path
    if (checkpoint := last(path)) is None:
        raise ConfigError(f"{path}: holds no complete checkpoint; name a run or a checkpoint")
    return checkpoint
