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

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from yocobit.config import ConfigError, ModelConfig
from yocobit.disk import flush, write_json
from yocobit.model import Decoder
from yocobit.training.tokenizer import END, end_token

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
CONFIG = "config.json"
TRAIN = "train.json"
TOKENIZER = "tokenizer.json"
STATE = "state.json"
CHAT_TEMPLATE = "chat_template.jinja"
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
    threads: int = 1


def save(
    run_dir: Path,
    state: RunState,
    model: Decoder,
    optimizer: dict[str, Tensor],
    train: dict[str, Any],
    tokenizer: Tokenizer,
    keep: int,
    chat_template: str | None = None,
) -> Path:
    """Write the checkpoint of `state.step`, if it is not there, and keep the `keep` newest."""
    directory = run_dir / "checkpoints"
    partial = directory / f"{_PARTIAL}{os.getpid()}"
    final = directory / f"step-{state.step:06d}"
    if _is_complete(final):
        return final
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_embeddings:
        del weights["head.weight"]
    save_file(weights, partial / MODEL, metadata={"format": "pt"})
    save_file(
        {name: tensor.contiguous() for name, tensor in optimizer.items()}, partial / OPTIMIZER
    )
    write_json(partial / CONFIG, model.config.to_json())
    write_json(partial / TRAIN, train)
    (partial / TOKENIZER).write_text(tokenizer.to_str(), encoding="utf-8")
    _write_token_roles(partial, tokenizer)
    if chat_template is not None:
        (partial / CHAT_TEMPLATE).write_text(chat_template, encoding="utf-8")
    sizes = {path.name: path.stat().st_size for path in partial.iterdir()}
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
    return final


def _write_token_roles(checkpoint: Path, tokenizer: Tokenizer) -> None:
    """Tell transformers what END is for; yocobit itself does not read these files."""
    roles = ("bos_token", "eos_token", "pad_token")
    names = dict.fromkeys(roles, END)
    names |= {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left"}
    write_json(checkpoint / "tokenizer_config.json", names)
    end = end_token(tokenizer)
    write_json(checkpoint / "generation_config.json", {f"{role}_id": end for role in roles})


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


def load_initial_weights(model: Decoder, checkpoint: Path) -> None:
    """Read master weights into a new model; ConfigError where their shapes differ."""
    with torch.device("meta"):
        source = Decoder(ModelConfig.from_json(checkpoint / CONFIG))
    there, here = (
        {name: list(tensor.shape) for name, tensor in m.state_dict().items()}
        for m in (source, model)
    )
    for name in (*there, *here):
        if there.get(name) != here.get(name):
            raise ConfigError(
                f"{checkpoint}: cannot start from it: '{name}' is {there.get(name, 'absent')} "
                f"there but {here.get(name, 'absent')} here; leave out [model] and "
                "data.tokenizer to take the checkpoint's"
            )
    load_weights(model, checkpoint)


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
        return sizes.keys() >= set(_CONTENTS) and all(
            (checkpoint / name).stat().st_size == size for name, size in sizes.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
