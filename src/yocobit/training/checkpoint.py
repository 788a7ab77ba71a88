"""Checkpoints of a run, written atomically and read without pickle.

yocobit.packing.checkpoints describes the files. A directory is written under a temporary name,
flushed and renamed.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from yocobit.config import ConfigError, ModelConfig
from yocobit.data import conversations
from yocobit.data.tokenizer import END, end_token
from yocobit.disk import WriteError, flush, sha256, write_json
from yocobit.model import Decoder
from yocobit.packing import checkpoints
from yocobit.packing.checkpoints import (
    CHAT_TEMPLATE,
    CONFIG,
    DAMAGED,
    DIRECTORY,
    MODEL,
    OPTIMIZER,
    PARTIAL,
    STATE,
    TOKENIZER,
    TRAIN,
)
from yocobit.packing.file_format import is_packed
from yocobit.packing.tensor_source import tensor_files
from yocobit.reading import read_own_json
from yocobit.text import n_ids, read_tokenizer
from yocobit.training.distributed import SINGLE_PROCESS, Processes
from yocobit.training.masters import master_weights
from yocobit.training.sharding import is_sharded, save_parts
from yocobit.training.state import RunState, StateFile


def save(
    run_dir: Path,
    state: RunState,
    model: Decoder,
    optimizer: dict[str, Tensor],
    train: dict[str, Any],
    tokenizer: Tokenizer,
    keep: int | None,
    chat_template: str | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> Path:
    """Write the checkpoint of `state.step` unless it exists; all processes call this together.

    Keeps the `keep` newest checkpoints (None: all) and the best one. After WriteError, all earlier
    checkpoints are unchanged.
    """
    final = checkpoints.directory_of(run_dir, state.step)
    if processes.broadcast(processes.is_main and _is_intact(final)):
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
        raise WriteError(final, error, checkpoints.describe_last(run_dir)) from None
    if keep is not None:
        processes.on_main(lambda: _delete_old(run_dir, keep, state.best_step))
    return final


def _is_intact(checkpoint: Path) -> bool:
    return checkpoints.is_complete(checkpoint) and checkpoints.damage(checkpoint) is None


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
    (partial / TOKENIZER).write_text(_with_bos(tokenizer).to_str(), encoding="utf-8")
    _write_token_roles(partial, tokenizer, has_chats=chat_template is not None)
    if chat_template is not None:
        is_ours = chat_template == conversations.CHAT_TEMPLATE
        stored = conversations.CHECKPOINT_TEMPLATE if is_ours else chat_template
        (partial / CHAT_TEMPLATE).write_text(stored, encoding="utf-8")
    paths = sorted(partial.iterdir())
    # From the page cache, before the flush; a thread would need memory that the run may not have.
    hashes = {path.name: sha256(path) for path in paths}
    for path in paths:
        flush(path)
    sizes = {path.name: path.stat().st_size for path in paths}
    content = {**msgspec.to_builtins(state), "size_bytes": sizes, "sha256": hashes}
    hashes[STATE] = checkpoints.state_digest(content)
    write_json(partial / STATE, content)
    for path in (partial / STATE, partial):
        flush(path)


def _with_bos(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer that starts each text with END in transformers, as in training.

    yocobit encodes without special tokens and adds END itself.
    """
    copy: Tokenizer = Tokenizer.from_str(tokenizer.to_str())
    copy.post_processor = TemplateProcessing(
        single=f"{END}:0 $A:0",
        pair=f"{END}:0 $A:0 {END}:1 $B:1",
        special_tokens=[(END, end_token(tokenizer))],
    )
    return copy


def _write_token_roles(checkpoint: Path, tokenizer: Tokenizer, has_chats: bool) -> None:
    """Write the roles of special tokens for transformers; yocobit does not read these files."""
    roles = ("bos_token", "eos_token", "pad_token")
    names = dict.fromkeys(roles, END)
    names |= {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left"}
    write_json(checkpoint / "tokenizer_config.json", names)
    generation: dict[str, Any] = dict.fromkeys((f"{r}_id" for r in roles), end_token(tokenizer))
    if has_chats:
        generation["stop_strings"] = list(conversations.STOP_STRINGS)
    write_json(checkpoint / "generation_config.json", generation)


def _delete_old(run_dir: Path, n_newest: int, best_step: int | None) -> None:
    directory = run_dir / DIRECTORY
    for path in (directory, run_dir):
        flush(path)
    for old in checkpoints.complete(run_dir)[:-n_newest]:
        # Renamed first, so that a kill during deletion leaves no incomplete checkpoint.
        if checkpoints.step_of(old) != best_step:
            shutil.rmtree(old.rename(directory / f"{PARTIAL}{old.name}"))


def newest_intact(run_dir: Path) -> tuple[Path | None, dict[Path, str]]:
    """Return the newest checkpoint whose files match their hashes, and the newer, damaged ones."""
    damaged: dict[Path, str] = {}
    for found in reversed(checkpoints.complete(run_dir)):
        if (reason := checkpoints.damage(found)) is None:
            return found, damaged
        damaged[found] = reason
    return None, damaged


def set_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint, so that it is neither loaded nor counted; return its path."""
    path = checkpoint.with_name(f"{DAMAGED}{checkpoint.name}")
    shutil.rmtree(path, ignore_errors=True)  # an earlier one of the same step
    return checkpoint.rename(path)


def remove_partial(run_dir: Path) -> None:
    """Delete the partial checkpoints of killed processes."""
    for path in (run_dir / DIRECTORY).glob(f"{PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)


def load_state(checkpoint: Path) -> RunState:
    """Read the progress of a run from state.json."""
    file = read_own_json(checkpoint / STATE, StateFile)
    return RunState(**{name: getattr(file, name) for name in RunState.__struct_fields__})


def load_optimizer(checkpoint: Path) -> dict[str, Tensor]:
    """Read the tensors of Optimizers.state."""
    path = checkpoint / OPTIMIZER
    tensors = _load_tensors(path)
    if (name := first_above(tensors)) is not None:
        raise ConfigError(
            f"{path}: '{name}' must be finite but has values that are NaN or infinite; use an "
            "earlier checkpoint"
        )
    return tensors


def load_model(path: Path) -> Decoder:
    """Load the model of a checkpoint, or of the last checkpoint of a run."""
    checkpoint = checkpoints.find(path)
    checkpoints.check_intact(checkpoint)
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
    if is_packed(checkpoint):
        weights = _without_padding(master_weights(checkpoint), model, checkpoint / TOKENIZER)
    else:
        weights = _read_weights(checkpoint, is_tied or model.config.tie_embeddings)
    if differences := _differences(weights, model):
        name, (shape, model_shape) = next(iter(differences.items()))
        raise ConfigError(
            f"{checkpoint}: cannot start from it: '{name}' is {shape} in the checkpoint but "
            f"{model_shape} in the model; omit [model] and data.tokenizer to use the checkpoint's"
        )
    model.load_state_dict(weights)


def _without_padding(
    weights: dict[str, Tensor], model: Decoder, tokenizer: Path
) -> dict[str, Tensor]:
    """Return weights without the padding rows of embedding and head.

    Published models pad their vocabulary; a run has that of its tokenizer. With a tokenizer other
    than the model's, the rows are unchanged.
    """
    n_tokens = model.config.vocab_size
    if not tokenizer.is_file() or n_ids(read_tokenizer(tokenizer)) != n_tokens:
        return weights
    tables = ("embedding.weight", "head.weight")
    return {name: w[:n_tokens] if name in tables else w for name, w in weights.items()}


def _read_weights(checkpoint: Path, is_tied: bool) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for path in tensor_files(checkpoint):
        tensors = _load_tensors(path)
        if (name := first_above(tensors)) is not None:
            raise ConfigError(
                f"{path}: tensor '{name}' must be finite but has values that are NaN or infinite; "
                "the run has diverged: use an earlier checkpoint"
            )
        weights |= tensors
    if is_tied and "embedding.weight" in weights:
        weights["head.weight"] = weights["embedding.weight"]
    return weights


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    return tensors


def first_above(tensors: Mapping[str, Tensor], limit: float = math.inf) -> str | None:
    """Return the name of a tensor with a NaN or a magnitude of `limit` or more, None without one.

    By default, that is a tensor with a value that is not finite.
    """
    for name, tensor in tensors.items():
        # The minimum and maximum of a tensor with a NaN are NaN; no mask is allocated.
        if tensor.numel() > 0 and not all(abs(float(v)) < limit for v in tensor.aminmax()):
            return name
    return None


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
