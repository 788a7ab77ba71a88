"""Checkpoints of a run, written atomically and read without pickle.

yocobit.packing.checkpoints describes the files. A directory is written under a temporary name,
flushed and renamed.
"""

from __future__ import annotations

import dataclasses
import os
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
from yocobit.packing import checkpoints
from yocobit.packing.checkpoints import (
    CHAT_TEMPLATE,
    CONFIG,
    DIRECTORY,
    MODEL,
    OPTIMIZER,
    PARTIAL,
    STATE,
    TOKENIZER,
    TRAIN,
)
from yocobit.training.distributed import SINGLE_PROCESS, Processes
from yocobit.training.sharding import is_sharded, save_parts
from yocobit.training.state import GradientSpikeGuard, RunState


def save(
    run_dir: Path,
    state: RunState,
    model: Decoder,
    optimizer: dict[str, Tensor],
    train: dict[str, Any],
    tokenizer: Tokenizer,
    keep: int,
    chat_template: str | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> Path:
    """Write the checkpoint of `state.step` unless it exists; all processes call this together.

    The `keep` newest checkpoints and the best one are kept. WriteError leaves all earlier
    checkpoints unchanged.
    """
    final = checkpoints.directory_of(run_dir, state.step)
    if processes.broadcast(checkpoints.is_complete(final)):
        return final
    partial = final.with_name(f"{PARTIAL}{processes.broadcast(os.getpid())}")

    def finish() -> None:
        _write_metadata(partial, state, model.config, train, tokenizer, chat_template)
        shutil.rmtree(final, ignore_errors=True)  # torn
        partial.rename(final)

    try:
        processes.on_main(lambda: _make_empty(partial))
        _write_tensors(partial, model, optimizer, processes)
        processes.on_main(finish)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        kept = checkpoints.last(run_dir)
        raise WriteError(final, error, f"last checkpoint: {kept or 'none yet'}") from None
    processes.on_main(lambda: _delete_old(run_dir, keep, state.best_step))
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
        return save_parts(files, processes.is_main)

    def save() -> None:
        for path, tensors in files.items():
            contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, path, metadata={"format": "pt"})

    processes.on_main(save)


def _write_metadata(
    partial: Path,
    state: RunState,
    config: ModelConfig,
    train: dict[str, Any],
    tokenizer: Tokenizer,
    chat_template: str | None,
) -> None:
    """Write all files but the tensors, state.json last, and flush every file to disk."""
    write_json(partial / CONFIG, {**config.to_json(), "auto_map": checkpoints.AUTO_MAP})
    checkpoints.write_remote_code(partial)
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
    """Name the special tokens for transformers; yocobit itself does not read these files."""
    roles = ("bos_token", "eos_token", "pad_token")
    names = dict.fromkeys(roles, END)
    names |= {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left"}
    write_json(checkpoint / "tokenizer_config.json", names)
    end = end_token(tokenizer)
    write_json(checkpoint / "generation_config.json", {f"{role}_id": end for role in roles})


def _delete_old(run_dir: Path, n_newest: int, best_step: int | None) -> None:
    directory = run_dir / DIRECTORY
    for path in (directory, run_dir):
        flush(path)
    for old in checkpoints.complete(run_dir)[:-n_newest]:
        # Renamed first: a process killed while deleting leaves no torn checkpoint under its name.
        if checkpoints.step_of(old) != best_step:
            shutil.rmtree(old.rename(directory / f"{PARTIAL}{old.name}"))


def remove_partial(run_dir: Path) -> None:
    """Delete the partial checkpoints of killed processes."""
    for path in (run_dir / DIRECTORY).glob(f"{PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)


def load_state(checkpoint: Path) -> RunState:
    """Read the progress of a run from state.json."""
    fields = checkpoints.read_state(checkpoint)
    del fields["size_bytes"]
    fields["guard"] = GradientSpikeGuard(**fields.get("guard", {}))
    return RunState(**fields)


def load_optimizer(checkpoint: Path) -> dict[str, Tensor]:
    """Read the tensors of Optimizers.state."""
    tensors: dict[str, Tensor] = load_file(checkpoint / OPTIMIZER)
    return tensors


def load_model(path: Path) -> Decoder:
    """Load the model of a checkpoint, or of the last checkpoint of a run."""
    checkpoint = checkpoints.find(path)
    model = Decoder(ModelConfig.from_json(checkpoint / CONFIG))
    load_weights(model, checkpoint)
    return model


def load_weights(model: Decoder, checkpoint: Path) -> None:
    """Load master weights into a model of the same configuration."""
    weights = _read_weights(checkpoint, model.config.tie_embeddings)
    if names := _differences(weights, model):
        raise ConfigError(f"{checkpoint / MODEL}: does not match {CONFIG}; '{min(names)}' differs")
    model.load_state_dict(weights)


def load_initial_weights(model: Decoder, checkpoint: Path) -> None:
    """Load master weights into a new model; ConfigError if a shape differs."""
    is_tied = ModelConfig.from_json(checkpoint / CONFIG).tie_embeddings
    weights = _read_weights(checkpoint, is_tied or model.config.tie_embeddings)
    if differences := _differences(weights, model):
        name, (shape, model_shape) = next(iter(differences.items()))
        raise ConfigError(
            f"{checkpoint}: cannot start from it: '{name}' is {shape} in the checkpoint but "
            f"{model_shape} in the model; omit [model] and data.tokenizer to use the checkpoint's"
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
    """Return the shapes in the file and in the model of the tensors that differ, by name."""
    in_file, in_model = (
        {name: str(list(tensor.shape)) for name, tensor in tensors.items()}
        for tensors in (weights, model.state_dict())
    )
    return {
        name: (in_file.get(name, "absent"), in_model.get(name, "absent"))
        for name in (*in_model, *in_file)
        if in_file.get(name) != in_model.get(name)
    }
