"""Checkpoints: RUN/checkpoints/step-000100/, written whole or not at all, read without pickle.

    model.safetensors      master weights            config.json   ModelConfig
    optimizer.safetensors  state of every parameter  train.json    TrainConfig
    tokenizer.json                                   state.json    progress, and each file's size
    tokenizer_config.json, generation_config.json    for transformers
    chat_template.jinja    of a run whose text has conversations

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
from yocobit.data.tokenizer import END, end_token
from yocobit.disk import WriteError, flush, write_json
from yocobit.model import Decoder
from yocobit.packing import is_packed
from yocobit.training.distributed import ALONE, Processes
from yocobit.training.guard import Guard
from yocobit.training.precision import Precision
from yocobit.training.sharding import is_sharded, save_parts

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
CONFIG = "config.json"
TRAIN = "train.json"
TOKENIZER = "tokenizer.json"
STATE = "state.json"
CHAT_TEMPLATE = "chat_template.jinja"
_CONTENTS = (MODEL, OPTIMIZER, CONFIG, TRAIN, TOKENIZER)
BEST, LAST = "best", "last"  # names that `find` knows beside those of directories
_NAME = re.compile(r"step-(\d+)")
_DIRECTORY = "checkpoints"
_PARTIAL = ".partial-"


@dataclasses.dataclass
class RunState:
    """How far a run is. With the configuration and the weights, all that the next step needs."""

    corpus_sha256: str
    teacher_sha256: str | None = None
    step: int = 0  # steps done
    total_steps: int | None = None  # None: a time budget not measured yet
    n_tokens: int = 0
    seconds: float = 0.0
    valid_bits_per_byte: float | None = None  # latest
    best_bits_per_byte: float | None = None  # on the text of evaluations before the last
    best_step: int | None = None
    guard: Guard = dataclasses.field(default_factory=Guard)
    # How the machine computed: with another, the same run has other last bits.
    threads: int = 1  # of each process
    processes: int = 1
    precision: Precision = "float32"
    is_compiled: bool = False

    @property
    def arithmetic(self) -> str:
        workers = f"{self.threads} threads"
        if self.processes > 1:
            workers += f" in each of {self.processes} processes"
        return f"{workers}, {self.precision}{', compiled' * self.is_compiled}"


def save(
    run_dir: Path,
    state: RunState,
    model: Decoder,
    optimizer: dict[str, Tensor],
    train: dict[str, Any],
    tokenizer: Tokenizer,
    keep: int,
    chat_template: str | None = None,
    processes: Processes = ALONE,
) -> Path:
    """Write the checkpoint of `state.step`, if it is not there.

    The `keep` newest and the best are kept. WriteError leaves what was there before as it was. All
    processes of a run call this together, each with its part of the tensors.
    """
    directory = run_dir / _DIRECTORY
    final = directory / f"step-{state.step:06d}"
    if processes.from_first(_is_complete(final)):
        return final
    partial = directory / f"{_PARTIAL}{processes.from_first(os.getpid())}"

    def finish() -> None:
        _write_rest(partial, state, model.config, train, tokenizer, chat_template)
        shutil.rmtree(final, ignore_errors=True)  # torn
        partial.rename(final)

    try:
        processes.first(lambda: _make_empty(partial))
        _write_tensors(partial, model, optimizer, processes)
        processes.first(finish)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        kept = last(run_dir)
        raise WriteError(final, error, f"last checkpoint: {kept or 'none yet'}") from None
    processes.first(lambda: _keep(run_dir, keep, state.best_step))
    return final


def _make_empty(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _write_tensors(
    partial: Path, model: Decoder, optimizer: dict[str, Tensor], processes: Processes
) -> None:
    weights = dict(model.state_dict())
    if model.config.tie_embeddings:
        del weights["head.weight"]
    files = {partial / MODEL: weights, partial / OPTIMIZER: optimizer}
    if is_sharded(weights["embedding.weight"]):
        return save_parts(files, processes.is_first)

    def save() -> None:
        for path, tensors in files.items():
            contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, path, metadata={"format": "pt"})

    processes.first(save)


def _write_rest(
    partial: Path,
    state: RunState,
    config: ModelConfig,
    train: dict[str, Any],
    tokenizer: Tokenizer,
    chat_template: str | None,
) -> None:
    """Write what belongs to the tensors that are there, and bring all of it to disk."""
    write_json(partial / CONFIG, config.to_json())
    write_json(partial / TRAIN, train)
    (partial / TOKENIZER).write_text(tokenizer.to_str(), encoding="utf-8")
    _write_token_roles(partial, tokenizer)
    if chat_template is not None:
        (partial / CHAT_TEMPLATE).write_text(chat_template, encoding="utf-8")
    sizes = {path.name: path.stat().st_size for path in partial.iterdir()}
    write_json(partial / STATE, {**dataclasses.asdict(state), "size_bytes": sizes})
    for path in (*partial.iterdir(), partial):
        flush(path)


def _write_token_roles(checkpoint: Path, tokenizer: Tokenizer) -> None:
    """Tell transformers what END is for; yocobit itself does not read these files."""
    roles = ("bos_token", "eos_token", "pad_token")
    names = dict.fromkeys(roles, END)
    names |= {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left"}
    write_json(checkpoint / "tokenizer_config.json", names)
    end = end_token(tokenizer)
    write_json(checkpoint / "generation_config.json", {f"{role}_id": end for role in roles})


def _keep(run_dir: Path, n_newest: int, best_step: int | None) -> None:
    directory = run_dir / _DIRECTORY
    for path in (directory, run_dir):
        flush(path)
    for old in _complete(run_dir)[:-n_newest]:
        # Renamed first: one killed while deleting leaves no half checkpoint under its name.
        if _step(old) != best_step:
            shutil.rmtree(old.rename(directory / f"{_PARTIAL}{old.name}"))


def last(run_dir: Path) -> Path | None:
    """Return the complete checkpoint of the largest step, if there is one."""
    found = _complete(run_dir)
    return found[-1] if found else None


def load_state(checkpoint: Path) -> RunState:
    """Read state.json."""
    fields = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    del fields["size_bytes"]
    fields["guard"] = Guard(**fields.get("guard", {}))
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
    weights = _read_weights(checkpoint, model.config.tie_embeddings)
    if names := _differences(weights, model):
        raise ConfigError(f"{checkpoint / MODEL}: does not fit {CONFIG}; '{min(names)}' differs")
    model.load_state_dict(weights)


def load_initial_weights(model: Decoder, checkpoint: Path) -> None:
    """Read master weights into a new model; ConfigError where their shapes differ."""
    is_tied = ModelConfig.from_json(checkpoint / CONFIG).tie_embeddings
    weights = _read_weights(checkpoint, is_tied or model.config.tie_embeddings)
    for name, (there, here) in _differences(weights, model).items():
        raise ConfigError(
            f"{checkpoint}: cannot start from it: '{name}' is {there} there but {here} here; "
            "leave out [model] and data.tokenizer to take the checkpoint's"
        )
    model.load_state_dict(weights)


def _read_weights(checkpoint: Path, is_tied: bool) -> dict[str, Tensor]:
    path = checkpoint / MODEL
    try:
        weights: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    if is_tied and "embedding.weight" in weights:
        weights["head.weight"] = weights["embedding.weight"]
    return weights


def _differences(weights: dict[str, Tensor], model: Decoder) -> dict[str, tuple[str, str]]:
    """Return the shapes of the tensors that differ, in the file and in the model, by name."""
    there, here = (
        {name: str(list(tensor.shape)) for name, tensor in tensors.items()}
        for tensors in (weights, model.state_dict())
    )
    return {
        name: (there.get(name, "absent"), here.get(name, "absent"))
        for name in (*here, *there)
        if there.get(name) != here.get(name)
    }


def best(run_dir: Path) -> Path | None:
    """Return the complete checkpoint of the fewest bits per byte, as far as its run knows."""
    newest = last(run_dir)
    step = newest and load_state(newest).best_step
    found = [path for path in _complete(run_dir) if _step(path) == step]
    return found[0] if found else None


def find(path: Path) -> Path:
    """Return the checkpoint that `path` stands for.

    It is a checkpoint, or a run for its last, or RUN/checkpoints/best or RUN/checkpoints/last.
    """
    named = {BEST: best, LAST: last}.get(path.name)
    if named is not None and path.parent.name == _DIRECTORY and not path.exists():
        if (checkpoint := named(path.parent.parent)) is None:
            raise ConfigError(f"{path}: the run has no such checkpoint yet")
        return checkpoint
    if not path.exists():
        raise ConfigError(f"{path}: no such run or checkpoint")
    if path.is_file():
        raise ConfigError(f"{path}: must be a run or a checkpoint but is a file; name a directory")
    if is_packed(path):
        raise ConfigError(
            f"{path}: is a packed model, which cannot be trained on, learned from or packed "
            "again; name the run or checkpoint that it was packed from"
        )
    if (path / MODEL).is_file() and (path / CONFIG).is_file():
        return path
    checkpoint = last(path)
    if checkpoint is None:
        raise ConfigError(f"{path}: holds no complete checkpoint; name a run or a checkpoint")
    return checkpoint


def remove_partial(run_dir: Path) -> None:
    """Delete what a killed run left half written."""
    for path in (run_dir / _DIRECTORY).glob(f"{_PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)


def _complete(run_dir: Path) -> list[Path]:
    """Return the complete checkpoints of a run by step."""
    found = {_step(path): path for path in (run_dir / _DIRECTORY).glob("step-*")}
    return [found[step] for step in sorted(found) if step >= 0 and _is_complete(found[step])]


def _step(checkpoint: Path) -> int:
    """Return the step that a directory is named after, -1 if it is not."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1


def _is_complete(checkpoint: Path) -> bool:
    try:
        sizes = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["size_bytes"]
        return sizes.keys() >= set(_CONTENTS) and all(
            (checkpoint / name).stat().st_size == size for name, size in sizes.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
