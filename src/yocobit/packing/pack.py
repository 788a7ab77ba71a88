"""Packing a checkpoint: from master weights to the directory that the engine serves from.

The one module of this package that needs torch, and only while pack() runs.

Letters: M output features   K input features   V vocabulary   C model width
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yocobit.config import ConfigError, ModelConfig, WeightKind
from yocobit.packing.layout import pack_sign, pack_ternary, quantize_rows
from yocobit.packing.reader import (
    ALIGNMENT,
    CONFIG,
    FORMAT,
    FORMAT_VERSION,
    GENERATION,
    MODEL,
    TOKENIZER,
    PackedModel,
    canonical_json,
    header_sha256,
    is_projection,
    is_table,
    parameter_shapes,
    read_model,
)

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = ("ternary", "sign", "f32", "f16")

_DTYPES = {"uint8": "U8", "int8": "I8", "float16": "F16", "float32": "F32"}
_LARGEST_F16 = float(np.finfo(np.float16).max)
_SAMPLING = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "max_new_tokens": 256}

Array = NDArray[Any]


def pack(checkpoint: Path, out: Path, weights: str | None = None) -> PackedModel:
    """Pack a run or a checkpoint into the new directory `out`, which appears whole or not at all.

    `weights` is one of WEIGHTS; None is what the model was trained for ("f32" if dense).
    """
    from yocobit.training.checkpoint import find, load_model

    source = find(checkpoint)
    config = ModelConfig.from_json(source / CONFIG)
    kind = _weight_kind(source, config.weights, weights)
    with _new_directory(out) as directory:
        config_json = _config_json(config)
        (directory / CONFIG).write_bytes(config_json)
        metadata = {"format": FORMAT, "format_version": FORMAT_VERSION}
        metadata["config_sha256"] = hashlib.sha256(config_json).hexdigest()
        if (source / TOKENIZER).is_file():
            tokenizer = (source / TOKENIZER).read_bytes()
            (directory / TOKENIZER).write_bytes(tokenizer)
            metadata["tokenizer_sha256"] = hashlib.sha256(tokenizer).hexdigest()
        (directory / GENERATION).write_bytes(_json(_generation_config(source / TOKENIZER)))
        with _threads_of_training(source):
            parameters = load_model(source).state_dict()
            tensors = _tensors(parameters, config, kind, source / MODEL)
        write_safetensors(directory / MODEL, tensors, metadata)
        read_model(directory)
    return read_model(out)


def write_safetensors(path: Path, tensors: dict[str, Array], metadata: dict[str, str]) -> None:
    """Write a safetensors file whose big tensors are aligned, with a hash of each in its metadata.

    Data begins at a multiple of ALIGNMENT; tensors whose size is a multiple of it come first.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    order = sorted(arrays, key=lambda name: arrays[name].nbytes % ALIGNMENT != 0)
    hashes = {f"sha256:{name}": hashlib.sha256(arrays[name].data).hexdigest() for name in order}
    header: dict[str, Any] = {"__metadata__": {**metadata, **hashes}}
    position = 0
    for name in order:
        array = arrays[name]
        offsets = [position, position := position + array.nbytes]
        dtype = _DTYPES[array.dtype.name]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
    header["__metadata__"]["header_sha256"] = header_sha256(header)
    raw = canonical_json(header)
    raw += b" " * (-(8 + len(raw)) % ALIGNMENT)
    with path.open("wb") as stream:
        stream.write(len(raw).to_bytes(8, "little"))
        stream.write(raw)
        for name in order:
            stream.write(arrays[name].data)


def _weight_kind(source: Path, trained: WeightKind, asked: str | None) -> str:
    """Return what to pack as, one of WEIGHTS; refuse what the model was not trained for."""
    if asked is None:
        return "f32" if trained == "dense" else trained
    if asked not in WEIGHTS:
        raise ConfigError(f"weights must be one of {', '.join(WEIGHTS)} but is {asked!r}")
    possible = ("f32", "f16") if trained == "dense" else (trained,)
    if asked not in possible:
        needed = "dense" if asked in ("f32", "f16") else asked
        raise ConfigError(
            f"{source}: weights must be {' or '.join(possible)} but is {asked!r}: the model was "
            f'trained with weights = "{trained}", and any other kind would output garbage; train '
            f'with weights = "{needed}"'
        )
    return asked


def _tensors(
    parameters: dict[str, Tensor], config: ModelConfig, kind: str, file: Path
) -> dict[str, Array]:
    """Return the tensors of the packed file, in the order of the model."""
    tensors: dict[str, Array] = {}
    for name in parameter_shapes(config):
        parameter = parameters[name]
        values: NDArray[np.float32] = parameter.numpy()
        if n_bad := int((~np.isfinite(values)).sum()):
            raise ConfigError(
                f"{file}: tensor '{name}' must be finite but has {n_bad} values that are NaN or "
                "infinite; pack an earlier checkpoint"
            )
        if not is_table(name) and not is_projection(name):
            tensors[name] = values
        elif kind in ("f32", "f16"):
            tensors[name] = values if kind == "f32" else _half(name, values, file)
        elif is_table(name):
            tensors[name], tensors[f"{name}_scale"] = quantize_rows(values)
        else:
            tensors[name], tensors[f"{name}_scale"] = _quantize(parameter, kind)
    return tensors


def _quantize(parameter: Tensor, kind: str) -> tuple[Array, Array]:
    """Return the codes and the scale (1,) of master weights (M, K), as training computes them."""
    from yocobit.model.bitlinear import quantize_weight

    assert kind in ("ternary", "sign")
    weights, scale = quantize_weight(parameter, "ternary" if kind == "ternary" else "sign")
    integers = weights.numpy().astype(np.int8)
    codes = pack_ternary(integers) if kind == "ternary" else pack_sign(integers)
    return codes, scale.numpy().reshape(1)


def _half(name: str, values: NDArray[np.float32], file: Path) -> Array:
    largest = float(np.abs(values).max())
    if largest > _LARGEST_F16:
        raise ConfigError(
            f"{file}: tensor '{name}' must be within {_LARGEST_F16:g} for f16 but holds "
            f'{largest:g}; pack with weights = "f32"'
        )
    return values.astype(np.float16)


@contextlib.contextmanager
def _threads_of_training(source: Path) -> Iterator[None]:
    """Run torch on as many threads as trained the checkpoint.

    The scale of a matrix is a sum whose last bit depends on them, and weights may round with it.
    """
    import torch

    from yocobit.training.checkpoint import STATE, load_state

    before = torch.get_num_threads()
    torch.set_num_threads(load_state(source).threads if (source / STATE).is_file() else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _config_json(config: ModelConfig) -> bytes:
    names = {"model_type": FORMAT, "architectures": ["YocobitForCausalLM"]}
    return _json({**names, **config.to_dict()})


def _generation_config(tokenizer_file: Path) -> dict[str, Any]:
    """Return defaults for sampling, under the names that Hugging Face gives them."""
    from tokenizers import Tokenizer

    from yocobit.training.tokenizer import END

    if not tokenizer_file.is_file():
        return _SAMPLING
    try:
        end = Tokenizer.from_str(tokenizer_file.read_text(encoding="utf-8")).token_to_id(END)
    except Exception as error:  # the library raises plain Exception
        raise ConfigError(f"{tokenizer_file}: is not a tokenizer.json ({error})") from None
    # Documents begin where the one before has ended, so the same token begins a text.
    return _SAMPLING if end is None else {"bos_token_id": end, "eos_token_id": end, **_SAMPLING}


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


@contextlib.contextmanager
def _new_directory(out: Path) -> Iterator[Path]:
    """Give a directory to fill, which becomes `out` if the block ends well and else vanishes."""
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: must not exist or be an empty directory; choose another name")
    made = [parent for parent in out.parents if not parent.exists()]  # innermost first
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process that had our id
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in (*partial.iterdir(), partial):
            _flush(path)
        partial.rename(out)
    except BaseException:  # Ctrl-C too
        shutil.rmtree(partial, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # not empty: someone else uses it by now
                parent.rmdir()
        raise
    _flush(out.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
