"""Checkpoints: RUN/checkpoints/step-000100/, written whole or not at all, read without pickle.

    model.safetensors      master weights            config.json   ModelConfig
    optimizer.safetensors  state of every parameter  train.json    TrainConfig
    tokenizer.json                                   state.json    progress, and each file's size

A directory is written beside, flushed and renamed; one whose files are absent or of another size
than state.json says is torn, and is never read.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from yocobit.config import ConfigError, ModelConfig
from yocobit.disk import flush, write_json
from yocobit.model import Decoder
from yocobit.training.distributed import ALONE, Processes
from yocobit.training.sharding import is_sharded, save_parts

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
CONFIG = "config.json"
TRAIN = "train.json"
TOKENIZER = "tokenizer.json"
STATE = "state.json"
_CONTENTS = (MODEL, OPTIMIZER, CONFIG, TRAIN, TOKENIZER)
_NAME = re.compile(r"step-(\d+)")
_PARTIAL = ".partial-"


@dataclasses.dataclass
class RunState:
    """How far a run is. With the configuration and the weights, all that the next step needs."""

    corpus_sha256: str
    step: int = 0  # steps done
    total_steps: int | None = None  # None: a time budget not measured yet
    n_tokens: int = 0
    seconds: float = 0.0
    valid_bits_per_byte: float | None = None  # latest
    best_bits_per_byte: float | None = None
    threads: int = 1  # of each process
    processes: int = 1


def save(
    run_dir: Path,
    state: RunState,
    model: Decoder,
    optimizer: dict[str, Tensor],
    train: dict[str, Any],
    tokenizer: Tokenizer,
    keep: int,
    processes: Processes = ALONE,
) -> Path:
    """Write the checkpoint of `state.step`, if it is not there, and keep the `keep` newest.

    All processes of a run call this together, each with its part of the tensors.
    """
    directory = run_dir / "checkpoints"
    partial = directory / f"{_PARTIAL}{processes.from_first(os.getpid())}"
    final = directory / f"step-{state.step:06d}"
    if processes.from_first(_is_complete(final)):
        return final
    processes.first(lambda: _make_empty(partial))
    weights = dict(model.state_dict())
    if model.config.tie_embeddings:
        del weights["head.weight"]
    if is_sharded(model.embedding.weight):
        files = {partial / MODEL: weights, partial / OPTIMIZER: optimizer}
        save_parts(files, processes.is_first)
    else:
        processes.first(lambda: _write_tensors(partial, weights, optimizer))
    processes.first(lambda: _finish(partial, final, state, model.config, train, tokenizer, keep))
    return final


def _make_empty(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _write_tensors(partial: Path, weights: dict[str, Tensor], optimizer: dict[str, Tensor]) -> None:
    for name, tensors in ((MODEL, weights), (OPTIMIZER, optimizer)):
        contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
        save_file(contiguous, partial / name, metadata={"format": "pt"})


def _finish(
    partial: Path,
    final: Path,
    state: RunState,
    config: ModelConfig,
    train: dict[str, Any],
    tokenizer: Tokenizer,
    keep: int,
) -> None:
    """Write what stands beside the tensors and bring it all to disk, then under its name."""
    directory = final.parent
    run_dir = directory.parent
    write_json(partial / CONFIG, config.to_dict())
    write_json(partial / TRAIN, train)
    (partial / TOKENIZER).write_text(tokenizer.to_str(), encoding="utf-8")
    sizes = {name: (partial / name).stat().st_size for name in _CONTENTS}
    write_json(partial / STATE, {**dataclasses.asdict(state), "size_bytes": sizes})
    for path in (*partial.iterdir(), partial):
        flush(path)
    shutil.rmtree(final, ignore_errors=True)  # torn
    partial.rename(final)
    for path in (directory, run_dir):
        flush(path)
    for old in _complete(run_dir)[:-keep]:
        # Renamed first: one killed while deleting leaves no half checkpoint under its name.
        shutil.rmtree(old.rename(directory / f"{_PARTIAL}{old.name}"))


def last(run_dir: Path) -> Path | None:
    """Return the complete checkpoint of the largest step, if there is one."""
    found = _complete(run_dir)
    return found[-1] if found else None


def load_state(checkpoint: Path) -> RunState:
    """Read state.json."""
    fields = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    del fields["size_bytes"]
    return RunState(**fields)


def load_train(checkpoint: Path) -> dict[str, Any]:
    """Read train.json: what TrainConfig.to_dict returned."""
    fields: dict[str, Any] = json.loads((checkpoint / TRAIN).read_text(encoding="utf-8"))
    return fields


def load_optimizer(checkpoint: Path) -> dict[str, Tensor]:
    """Read what Optimizers.state returned."""
    tensors: dict[str, Tensor] = load_file(checkpoint / OPTIMIZER)
    return tensors


def load_model(path: Path) -> Decoder:
    """Read the model of a checkpoint, or of the last checkpoint of a run."""
    checkpoint = find(path)
    model = Decoder(ModelConfig.from_json(checkpoint / CONFIG))
    load_weights(model, checkpoint)
    return model


def load_weights(model: Decoder, checkpoint: Path) -> None:
    """Read master weights into a model of the same shape."""
    path = checkpoint / MODEL
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    if model.config.tie_embeddings and "embedding.weight" in weights:
        weights["head.weight"] = weights["embedding.weight"]
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    found = {name: tensor.shape for name, tensor in weights.items()}
    if expected != found:
        names = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
        raise ConfigError(f"{path}: does not fit {CONFIG}; '{names[0]}' differs")
    model.load_state_dict(weights)


def find(path: Path) -> Path:
    """Return the checkpoint that `path`, a run or a checkpoint, stands for."""
    if not path.exists():
        raise ConfigError(f"{path}: no such run or checkpoint")
    if (path / MODEL).is_file() and (path / CONFIG).is_file():
        return path
    checkpoint = last(path)
    if checkpoint is None:
        raise ConfigError(f"{path}: holds no complete checkpoint; name a run or a checkpoint")
    return checkpoint


def remove_partial(run_dir: Path) -> None:
    """Delete what a killed run left half written."""
    for path in (run_dir / "checkpoints").glob(f"{_PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)


def _complete(run_dir: Path) -> list[Path]:
    """Return the complete checkpoints of a run by step."""
    found = []
    for path in (run_dir / "checkpoints").glob("step-*"):
        if (match := _NAME.fullmatch(path.name)) and _is_complete(path):
            found.append((int(match[1]), path))
    return [path for _, path in sorted(found)]


def _is_complete(checkpoint: Path) -> bool:
    try:
        sizes = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["size_bytes"]
        return all((checkpoint / name).stat().st_size == sizes[name] for name in _CONTENTS)
    except (OSError, ValueError, KeyError, TypeError):
        return False
