"""Packing a checkpoint: from master weights to the packed model that the engine loads.

Reads and writes one tensor at a time. Needs torch only to quantise with the scales of training: a
scale is a sum, whose last bit depends on the order of its additions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from yocobit.config import ConfigError, ModelConfig, WeightKind
from yocobit.data.conversations import PACKED_TEMPLATES, STOP_STRINGS
from yocobit.data.tokenizer import END
from yocobit.extras import needs_extra
from yocobit.mixers import parameter_shapes
from yocobit.packing import checkpoints
from yocobit.packing.file_format import CHAT_TEMPLATE, CONFIG, MODEL, TOKENIZER, scale_name
from yocobit.packing.formats import INT8, WeightFormat, formats_of, head_format, projection_format
from yocobit.packing.layout import Array, Floats
from yocobit.packing.reader import PackedModel
from yocobit.packing.scales import PerGroup
from yocobit.packing.stored_parameters import stored_parameters
from yocobit.packing.tensor_source import SafetensorsDirectory, TensorSource
from yocobit.packing.text_files import TextFiles, read_text_files
from yocobit.packing.writer import Progress, check_new, tracked, write_model
from yocobit.reading import decode, read_bytes
from yocobit.text import parse_tokenizer

_SAMPLING = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "max_new_tokens": 256}


def pack(
    checkpoint: Path,
    out: Path,
    weights: str | None = None,
    head: str = INT8.name,
    progress: Progress | None = None,
) -> PackedModel:
    """Pack a run or a checkpoint into the new directory `out`, which appears atomically.

    `weights` is a key of PROJECTION_FORMATS whose weights are those of training; None is the
    default ("f32" for dense weights). `head` is a key of HEAD_FORMATS: "int4" halves the memory
    traffic of the head and is less accurate. Holds one tensor at a time; `progress` receives the
    bytes that were packed.
    """
    directory = checkpoints.find(checkpoint)
    checkpoints.check_intact(directory)
    config = ModelConfig.from_json(directory / CONFIG)
    format = _projection_format(directory, config.weights, weights)
    head_format(head)  # raises for an unknown one
    if not format.is_integer and head != INT8.name:
        raise ConfigError(
            f"{directory}: head must be {INT8.name} for a {config.weights} model but is {head!r}; "
            f"leave it out: the head is stored in {format.name}"
        )
    check_new(out)
    source = SafetensorsDirectory(directory)
    parameters = stored_parameters(config, format.name, head if format.is_integer else None)
    has_state = (directory / checkpoints.STATE).is_file()
    threads = checkpoints.read_state(directory).threads if has_state else 1

    def tensors() -> Iterator[tuple[str, Array]]:
        shapes = parameter_shapes(config)
        tied = {"head.weight"} if config.tie_embeddings else set()  # ignored if present
        if differing := (set(source.names()) - tied) ^ shapes.keys():
            raise _misfit(directory / MODEL, min(differing))
        for name, stored in parameters.items():
            own = name if name in shapes else "embedding.weight"  # a tied head
            values = _read(source, own, stored.shape, directory / MODEL)
            yield from quantize(name, values, stored.format, directory / MODEL, threads)

    tokenizer, generation, template = _text_files(directory, config.vocab_size)
    packed = tracked(tensors(), parameters, progress)
    return write_model(out, config, parameters, packed, tokenizer, generation, template)


def quantize(
    name: str, values: Floats, format: WeightFormat, file: Path, threads: int | None = None
) -> Iterator[tuple[str, Array]]:
    """Yield the tensors that store float32 master weights; ConfigError names tensor and file.

    `threads` is the thread count of training, on which scales depend; None: that of torch now.
    """
    try:
        if format.quantize is not None:
            codes, scales = format.quantize(values)
        else:
            codes, scales = _quantize_as_trained(values, format, threads)
    except ValueError as error:
        raise ConfigError(f"{file}: tensor '{name}': {error}") from None
    yield name, codes
    if scales is not None:
        yield scale_name(name), scales


def _quantize_as_trained(
    values: Floats, format: WeightFormat, threads: int | None
) -> tuple[Array, Array]:
    """Return codes and scales of master weights (M, K), equal to those of training.

    The last bit of a scale depends on the thread count of its sum, and so may the rounding.
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise needs_extra("train", "master weights need PyTorch") from None
    from yocobit.model.quantization import quantize_weight

    assert format.weights is not None and format.scale is not None
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        integers, scale = quantize_weight(torch.from_numpy(values), format.weights)
    finally:
        torch.set_num_threads(before)
    codes = format.encode(integers.numpy().astype(np.int8))
    if isinstance(format.scale, PerGroup):
        return codes, format.scale.encode(scale.numpy())
    return codes, scale.numpy().reshape(format.scale.shape(*values.shape))


def _projection_format(source: Path, trained: WeightKind, name: str | None) -> WeightFormat:
    """Return the format by name; ConfigError if the model was not trained for it."""
    possible = formats_of(trained)
    if name is None:
        return possible[0]
    format = projection_format(name)
    if format not in possible:
        raise ConfigError(
            f"{source}: weights must be {' or '.join(f.name for f in possible)} but is {name!r}: "
            f'the model was trained with weights = "{trained}", and any other format would output '
            f'garbage; train with weights = "{format.weights}"'
        )
    return format


def _read(source: TensorSource, name: str, shape: tuple[int, ...], file: Path) -> Floats:
    """Return a parameter in float32; ConfigError if its shape is wrong or it is not finite."""
    values = source.read(name)
    if values.shape != shape or values.dtype.kind != "f":
        raise _misfit(file, name)
    if n_bad := int((~np.isfinite(values)).sum()):
        raise ConfigError(
            f"{file}: tensor '{name}' must be finite but has {n_bad} values that are NaN or "
            "infinite; pack an earlier checkpoint"
        )
    return values.astype(np.float32, copy=False)


def _misfit(file: Path, name: str) -> ConfigError:
    return ConfigError(f"{file}: does not fit {CONFIG}; '{name}' differs")


def _text_files(directory: Path, vocab_size: int) -> TextFiles:
    """Return the text files of a checkpoint, completed by the defaults of training."""
    tokenizer, template = (_content(directory / name) for name in (TOKENIZER, CHAT_TEMPLATE))
    is_run = (directory / checkpoints.STATE).is_file()
    files = TextFiles(tokenizer, {}, template)
    files = files if is_run else read_text_files(directory, vocab_size)
    defaults: dict[str, Any] = {}
    if tokenizer is not None:
        content = decode(tokenizer, directory / TOKENIZER)
        end = parse_tokenizer(content, directory / TOKENIZER).token_to_id(END)
        if end is not None:
            # In training this token separates documents, so it is also the start token.
            defaults = {"bos_token_id": end, "eos_token_id": end}
    if not files.generation.keys() & _SAMPLING.keys():
        defaults |= _SAMPLING
    ours = {a.encode(): b.encode() for a, b in PACKED_TEMPLATES.items()}.get(template or b"")
    if template is not None and (is_run or ours is not None):
        defaults["stop_strings"] = list(STOP_STRINGS)
    if ours is not None:
        files = files._replace(template=ours)  # the engine adds the BOS token
    return files._replace(generation={**defaults, **files.generation})


def _content(file: Path) -> bytes | None:
    return read_bytes(file) if file.is_file() else None
