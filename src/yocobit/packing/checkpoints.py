"""Checkpoints on disk, RUN/checkpoints/step-000100/: their files, search and completeness.

    model.safetensors      master weights            config.json   ModelConfig
    optimizer.safetensors  state of every parameter  train.json    TrainConfig
    tokenizer.json                                   state.json    progress; sizes and SHA-256
    tokenizer_config.json, generation_config.json    for transformers
    modeling_yocobit.py    for transformers, with trust_remote_code=True
    chat_template.jinja    if the training text has conversations

Needs no torch; yocobit.training.checkpoint writes and loads checkpoints. A directory is incomplete
if files are missing or differ in size from state.json; `last` and `best` skip it. It is damaged if
a file differs in its hash: a reader of a checkpoint calls `check_intact` first.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from yocobit.config import ConfigError
from yocobit.disk import sha256
from yocobit.errors import printable
from yocobit.packing.file_format import (
    CHAT_TEMPLATE,
    CONFIG,
    GENERATION,
    INDEX,
    MODEL,
    TOKENIZER,
    is_packed,
)
from yocobit.reading import read_json

__all__ = [
    "AUTO_MAP",
    "BEST",
    "CHAT_TEMPLATE",
    "CONFIG",
    "DAMAGED",
    "DIRECTORY",
    "LAST",
    "LOCK",
    "MANIFEST",
    "MODEL",
    "OPTIMIZER",
    "PARTIAL",
    "REMOTE_CODE",
    "STATE",
    "TOKENIZER",
    "TRAIN",
    "StoredState",
    "best",
    "check_intact",
    "complete",
    "damage",
    "describe_last",
    "directory_of",
    "find",
    "find_initial",
    "is_complete",
    "is_run",
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
LOCK = ".yocobit.lock"  # of a run: written first and kept, so it marks a run without a manifest
MANIFEST = "run.json"  # of a run; yocobit.tracking.manifest writes it
BEST, LAST = "best", "last"  # aliases RUN/checkpoints/best and .../last; find() resolves them
DAMAGED = "damaged-"  # prefix of a directory that a resumed run has set aside
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

# The files that packing, evaluation and initialisation read.
_READ_WITHOUT_RESUMING = {MODEL, CONFIG, TOKENIZER, CHAT_TEMPLATE, GENERATION}
_ADAPTER = "adapter_config.json"  # of PEFT

_REQUIRED = {MODEL, OPTIMIZER, CONFIG, TRAIN, TOKENIZER}
_NAME = re.compile(r"step-(\d+)")
_MANIFEST_KEYS = {"config", "corpus", "starts"}


def is_run(directory: Path | str) -> bool:
    """Whether a directory is that of a run: by its lock file, manifest or checkpoints.

    Accepts str, because creating a Path for each of thousands of directories of a corpus is slow.
    """
    lock, manifest, steps = (os.path.join(directory, n) for n in (LOCK, MANIFEST, DIRECTORY))
    if os.path.isfile(lock):
        return True
    if os.path.isfile(manifest):
        with suppress(OSError, ConfigError):
            if read_json(Path(manifest)).keys() >= _MANIFEST_KEYS:
                return True
    return os.path.isdir(steps) and any(
        (path / STATE).is_file() and (path / TRAIN).is_file() for path in Path(steps).glob("step-*")
    )


def directory_of(run_dir: Path, step: int) -> Path:
    """Return the directory of the checkpoint of a step."""
    return run_dir / DIRECTORY / f"step-{step:06d}"


def step_of(checkpoint: Path) -> int:
    """Return the step in a directory's name; -1 for other names."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1


def complete(run_dir: Path) -> list[Path]:
    """Return the complete checkpoints of a run, ordered by step."""
    directory = run_dir / DIRECTORY
    try:
        names = os.listdir(directory)  # unlike glob(), it raises PermissionError
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = {step_of(path): path for path in map(directory.joinpath, names)}
    return [found[step] for step in sorted(found) if step >= 0 and is_complete(found[step])]


def is_complete(checkpoint: Path) -> bool:
    """Whether every file is present with the size that state.json records."""
    try:
        sizes = read_state(checkpoint).size_bytes
    except PermissionError:
        raise
    except (OSError, ConfigError):
        return False
    return sizes.keys() >= _REQUIRED and all(
        _has_size(checkpoint / name, size) for name, size in sizes.items()
    )


def damage(checkpoint: Path, names: Collection[str] | None = None) -> str | None:
    """Return a line about a file that differs from its hash; None if all files are intact.

    `names` limits the files; missing ones are ignored. Each is read once. Checkpoints of earlier
    versions have no hashes.
    """
    hashes = read_state(checkpoint).sha256
    of_state = hashes.pop(STATE, None)
    if names is None and of_state not in (None, state_digest(read_json(checkpoint / STATE))):
        return f"{STATE} is damaged: its SHA-256 differs from that in it"
    paths = [checkpoint / name for name in hashes if names is None or name in names]
    paths = [path for path in paths if path.exists()]
    for path in paths:  # without threads, whose memory a run may not have
        if sha256(path) != hashes[path.name]:
            return f"{path.name} is damaged: its SHA-256 differs from that in {STATE}"
    return None


def state_digest(state: Mapping[str, Any]) -> str:
    """Return the hash of state.json that the file itself records: of all fields but this hash."""
    hashes = {name: digest for name, digest in state["sha256"].items() if name != STATE}
    fields = json.dumps({**state, "sha256": hashes}, sort_keys=True)
    return hashlib.sha256(fields.encode()).hexdigest()


def check_intact(checkpoint: Path) -> None:
    """Raise ConfigError if a file that packing or evaluation reads differs from its hash."""
    if (checkpoint / STATE).is_file():
        found = damage(checkpoint, _READ_WITHOUT_RESUMING)
        if found is not None:
            raise ConfigError(f"{checkpoint}: {found}; name an earlier checkpoint")


def last(run_dir: Path) -> Path | None:
    """Return the complete checkpoint with the largest step, or None."""
    found = complete(run_dir)
    return found[-1] if found else None


def describe_last(run_dir: Path) -> str:
    """Return the last checkpoint of a run as a part of an error message."""
    return f"last checkpoint: {last(run_dir) or 'none yet'}"


def torn(run_dir: Path, step: int) -> list[Path]:
    """Return the incomplete checkpoints of a run after `step`, ordered by step."""
    found = {step_of(path): path for path in (run_dir / DIRECTORY).glob("step-*")}
    return [found[n] for n in sorted(found) if n > step and not is_complete(found[n])]


def best(run_dir: Path) -> Path | None:
    """Return the complete checkpoint with the lowest bits per byte, or None."""
    newest = last(run_dir)
    step = newest and read_state(newest).best_step
    return next((path for path in complete(run_dir) if step_of(path) == step), None)


def write_remote_code(directory: Path) -> None:
    """Write the code that AUTO_MAP names: it imports the classes of this package."""
    (directory / REMOTE_CODE).write_text(
        '"""The model in transformers. Needs yocobit with its extra hf."""\n\n'
        f"from yocobit.hf import {', '.join(_CLASSES.values())}  # noqa: F401\n",
        encoding="utf-8",
    )


FileName = Annotated[str, Meta(pattern=r"^(?!\.{1,2}$)[^/\x00]+$")]  # in the same directory


class StoredState(msgspec.Struct):
    """The fields of state.json that are read without torch; training.state has the others."""

    size_bytes: dict[FileName, int]  # of each other file
    sha256: dict[FileName, str] = {}
    threads: Annotated[int, Meta(ge=1, le=4096)] = 1  # that pack() starts
    best_step: int | None = None


def read_state(checkpoint: Path) -> StoredState:
    """Read state.json; ConfigError if it is damaged, OSError as from open()."""
    return read_json(checkpoint / STATE, StoredState)


def read_train(checkpoint: Path) -> dict[str, Any]:
    """Read train.json: the result of TrainConfig.to_dict."""
    return read_json(checkpoint / TRAIN)


def find(path: Path) -> Path:
    """Return the checkpoint that `path` names.

    `path` is a checkpoint, a run (for its last checkpoint), or RUN/checkpoints/best or .../last.
    """
    if is_alias(path) and not path.exists():
        named = {BEST: best, LAST: last}[path.name]
        if (checkpoint := named(path.parent.parent)) is None:
            raise ConfigError(f"{path}: the run has no such checkpoint yet")
        return checkpoint
    if not path.exists():
        raise ConfigError(f"{path}: no such run or checkpoint")
    if path.is_file():
        raise ConfigError(f"{path}: must be a run or a checkpoint but is a file; name a directory")
    if is_packed(path):
        raise ConfigError(
            f"{path}: is a packed model, which cannot be resumed, distilled or packed again; "
            "name the run or checkpoint that it was packed from, or start a run from it by --init"
        )
    if (path / STATE).is_file() and step_of(path) >= 0:
        _check_complete(path)
        return path
    if ((path / MODEL).is_file() or (path / INDEX).is_file()) and (path / CONFIG).is_file():
        return path
    if (path / _ADAPTER).is_file():
        raise ConfigError(
            f"{path}: is an adapter without its model; merge them (merge_and_unload) and save the "
            "result"
        )
    if variants := sorted(path.glob("model.*.safetensors")):  # of save_pretrained(variant=...)
        raise ConfigError(
            f"{path}: weights must be in {MODEL} but are in {printable(variants[0].name)}; save "
            "them without `variant`"
        )
    if (checkpoint := last(path)) is None:
        raise ConfigError(f"{path}: holds no complete checkpoint; name a run or a checkpoint")
    if newer := torn(path, step_of(checkpoint)):
        raise ConfigError(
            f"{newer[-1]}: is incomplete: a file is missing or has another size than {STATE} "
            f"records; name an earlier checkpoint, such as {checkpoint}"
        )
    return checkpoint


def find_initial(path: Path) -> Path:
    """Return the checkpoint or packed model that `path` names, whose weights start a run."""
    return path if is_packed(path) else find(path)


def is_alias(path: Path) -> bool:
    """Whether `path` is RUN/checkpoints/best or .../last."""
    return path.name in (BEST, LAST) and path.parent.name == DIRECTORY


def _check_complete(checkpoint: Path) -> None:
    """Raise ConfigError unless a checkpoint has all files of a model, in their full size."""
    sizes = read_state(checkpoint).size_bytes
    for name in sorted({MODEL, CONFIG} | sizes.keys()):
        path = checkpoint / name
        is_optional = name not in {MODEL, CONFIG} and not path.exists()
        if not is_optional and not _has_size(path, sizes.get(name)):
            raise ConfigError(
                f"{checkpoint}: is incomplete: {name} is missing or has another size than {STATE} "
                "records; name another checkpoint"
            )


def _has_size(path: Path, size: int | None) -> bool:
    try:
        return path.stat().st_size == size
    except PermissionError:
        raise
    except OSError:  # absent, or a loop of links
        return False
