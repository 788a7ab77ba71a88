"""Packing a checkpoint: from master weights to the directory that the engine serves from.

The one module of this package that needs torch, and only while pack() runs.

Letters: M output features   K input features   V vocabulary   C model width
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from yocobit.config import ConfigError, ModelConfig, WeightKind
from yocobit.data.chat import END_OF_TURN
from yocobit.data.tokenizer import END
from yocobit.mixers import parameter_shapes
from yocobit.packing.layout import pack_int4, pack_sign, pack_ternary, quantize_rows
from yocobit.packing.reader import (
    CHAT_TEMPLATE,
    CONFIG,
    MODEL,
    TOKENIZER,
    PackedModel,
    is_projection,
    is_table,
)
from yocobit.packing.writer import Array, check_new, write_model

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = ("ternary", "sign", "f32", "f16")

_LARGEST_F16 = float(np.finfo(np.float16).max)
_SAMPLING = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "max_new_tokens": 256}


def pack(
    checkpoint: Path, out: Path, weights: str | None = None, head: str = "int8"
) -> PackedModel:
    """Pack a run or a checkpoint into the new directory `out`, which appears whole or not at all.

    `weights` is one of WEIGHTS; None is what the model was trained for ("f32" if dense). `head`
    is "int8" or "int4", which halves what a token reads of it and costs some exactness.
    """
    from yocobit.training.checkpoint import find, load_model

    source = find(checkpoint)
    config = ModelConfig.from_json(source / CONFIG)
    kind = _weight_kind(source, config.weights, weights)
    check_new(out)
    with _threads_of_training(source):
        parameters = load_model(source).state_dict()
        tensors = _tensors(parameters, config, kind, source / MODEL)
        if head == "int4":
            tensors.update(_int4_head(parameters, config, source))
        elif head != "int8":
            raise ConfigError(f"head must be int8 or int4 but is {head!r}")
    tokenizer_file = source / TOKENIZER
    tokenizer = tokenizer_file.read_bytes() if tokenizer_file.is_file() else None
    generation = _generation_config(tokenizer_file)
    template_file, template = source / CHAT_TEMPLATE, None
    if template_file.is_file():
        template = template_file.read_bytes()
        generation["stop_strings"] = [f"\n{END_OF_TURN}", END_OF_TURN]
    return write_model(out, config, tensors, tokenizer, generation, template)


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
    from yocobit.model.quantization import quantize_weight

    assert kind in ("ternary", "sign")
    weights, scale = quantize_weight(parameter, "ternary" if kind == "ternary" else "sign")
    integers = weights.numpy().astype(np.int8)
    codes = pack_ternary(integers) if kind == "ternary" else pack_sign(integers)
    return codes, scale.numpy().reshape(1)


def _int4_head(
    parameters: dict[str, Tensor], config: ModelConfig, source: Path
) -> dict[str, Array]:
    if config.weights == "dense":
        raise ConfigError(f"{source}: head must be int8 for a dense model; it stays in float")
    codes, scales = pack_int4(parameters["head.weight"].numpy())
    return {"head.weight": codes, "head.weight_scale": scales}


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


def _generation_config(tokenizer_file: Path) -> dict[str, Any]:
    """Return defaults for sampling, under the names that Hugging Face gives them."""
    if not tokenizer_file.is_file():
        return dict(_SAMPLING)
    try:
        end = Tokenizer.from_str(tokenizer_file.read_text(encoding="utf-8")).token_to_id(END)
    except Exception as error:  # the library raises plain Exception
        raise ConfigError(f"{tokenizer_file}: is not a tokenizer.json ({error})") from None
    # Documents begin where the one before has ended, so the same token begins a text.
    return (
        dict(_SAMPLING) if end is None else {"bos_token_id": end, "eos_token_id": end, **_SAMPLING}
    )
