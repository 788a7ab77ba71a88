"""Conversion of a published checkpoint to a packed model, one tensor at a time.

Needs torch only for master weights, which are quantised as in training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from yocobit.config import ConfigError
from yocobit.importers.checkpoint import Checkpoint, IntegerMatrix
from yocobit.importers.gguf.reader import GGUFCheckpoint
from yocobit.importers.huggingface.reader import HuggingFaceCheckpoint
from yocobit.importers.report import describe_import, unit_of, warnings_of
from yocobit.mixers import model_parameters
from yocobit.packing.file_format import DTYPES, scale_name
from yocobit.packing.formats import INT8_PER_TOKEN, WeightFormat, formats_of, projection_format
from yocobit.packing.layout import Array, Floats
from yocobit.packing.pack import quantize
from yocobit.packing.reader import PackedModel
from yocobit.packing.scales import PerGroup
from yocobit.packing.stored_parameters import StoredParameter, stored_parameters
from yocobit.packing.writer import Progress, check_new, tracked, write_model
from yocobit.reading import decode
from yocobit.text import check_lossless, parse_tokenizer


def import_model(
    source: Path,
    out: Path,
    head: str | None = None,
    *,
    weights: str | None = None,
    tokenizer: Path | None = None,
    report: Callable[[str], object] | None = None,
    progress: Progress | None = None,
) -> PackedModel:
    """Write the published checkpoint `source` as a packed model into the new directory `out`.

    `report` receives the warnings and one line about the model; other options are as in
    write_checkpoint. ConfigError for a missing tensor or key, or an unsupported architecture.
    """
    check_new(out)
    checkpoint = open_checkpoint(source)
    model = write_checkpoint(
        checkpoint,
        out,
        head,
        weights=weights,
        tokenizer=tokenizer,
        report=report,
        progress=progress,
    )
    if report is not None:
        for warning in warnings_of(checkpoint, model):
            report(f"warning: {warning}")
        report(describe_import(checkpoint, model))
    return model


def open_checkpoint(source: Path) -> Checkpoint:
    """Open a published checkpoint: a GGUF file or a Hugging Face directory."""
    return GGUFCheckpoint(source) if source.is_file() else HuggingFaceCheckpoint(source)


def write_checkpoint(
    checkpoint: Checkpoint,
    out: Path,
    head: str | None = None,
    *,
    weights: str | None = None,
    tokenizer: Path | None = None,
    report: Callable[[str], object] | None = None,
    progress: Progress | None = None,
) -> PackedModel:
    """Write a checkpoint as a packed model into the new directory `out`.

    `head` is a key of HEAD_FORMATS: by default int8, or that of the projections in a dense model.
    "int4" halves the memory traffic of the head and is less accurate. "f16" and "f32" apply to the
    embedding too; "f32" rounds nothing. `weights` is the format of dense projections, "f32" by
    default. Both replace the float formats of the checkpoint, and formats of weights-only
    quantisation, whose weights floats represent exactly. `tokenizer` is a directory with a
    tokenizer that replaces the checkpoint's. A tokenizer that loses text is a ConfigError;
    `report` receives a line about characters that it drops, `progress` the bytes that were
    converted.
    """
    check_new(out)
    config = checkpoint.config
    requested = {"head", "embedding"} if head is not None else set()
    is_weights_only = _is_weights_only(formats_of(config.weights)[0])
    if weights is not None and (config.weights == "dense" or is_weights_only):
        requested.add("projection")
        if not projection_format(weights).is_integer:
            config = config.replace(weights="dense")
    roles = {name: parameter.role for name, parameter in model_parameters(config).items()}
    formats = {
        name: format
        for name, format in checkpoint.formats.items()
        if roles.get(name) not in requested or (format.is_integer and not _is_weights_only(format))
    }
    parameters = stored_parameters(config, weights, head, formats)
    files = checkpoint.text_files(tokenizer)
    if files.tokenizer is not None:
        subject = f"{tokenizer or checkpoint.path}: its tokenizer"
        parsed = parse_tokenizer(decode(files.tokenizer, subject), subject)
        for note in check_lossless(parsed, subject):
            if report is not None:
                report(note)
    tensors = tracked(stored_tensors(checkpoint, parameters), parameters, progress)
    return write_model(out, config, parameters, tensors, *files)


def stored_tensors(
    checkpoint: Checkpoint, parameters: Mapping[str, StoredParameter]
) -> Iterator[tuple[str, Array]]:
    """Yield the tensors of a packed model that store `parameters`, converted to their formats."""
    is_tied = checkpoint.config.tie_embeddings
    for name, stored in parameters.items():
        is_tied_head = is_tied and name == "head.weight"
        values = checkpoint.read("embedding.weight" if is_tied_head else name, stored.shape)
        format = stored.format
        if isinstance(values, IntegerMatrix) and format.quantize is not None:
            values = _as_floats(checkpoint, name, values)
        if not isinstance(values, IntegerMatrix):
            yield from quantize(name, values, format, checkpoint.path)
            continue
        try:
            codes = format.encode(values.integers)
        except ValueError as error:
            raise ConfigError(
                f"{checkpoint.path}: tensor '{name}' has no format {format.name}: {error}"
            ) from None
        yield name, codes
        yield scale_name(name), _stored_scales(checkpoint, name, stored, values)


def _is_weights_only(format: WeightFormat) -> bool:
    return format.activations.group_columns is not None


def _as_floats(checkpoint: Checkpoint, name: str, matrix: IntegerMatrix) -> Floats:
    """Return the weights of a matrix; ConfigError if the model has quantised activations.

    In such a model, a matmul with float activations differs from that of training.
    """
    if formats_of(checkpoint.config.weights)[0].activations is INT8_PER_TOKEN:
        raise ConfigError(
            f"{checkpoint.path}: tensor '{name}' must be stored as integers, as it is published, "
            "since the model was trained with quantised activations"
        )
    with np.errstate(over="ignore"):  # checked below
        floats = matrix.floats()
    if not np.isfinite(floats).all():
        raise ConfigError(
            f"{checkpoint.path}: tensor '{name}' must have weights of float32 but has a scale of "
            f"{matrix.scale.max():g}"
        )
    return floats


def _stored_scales(
    checkpoint: Checkpoint, name: str, stored: StoredParameter, matrix: IntegerMatrix
) -> Array:
    """Return published scales in dtype and layout of the format; ConfigError if one is rounded.

    Equal scales may be repeated: those of a matrix for rows, those of rows for groups.
    """
    granularity = stored.format.scale
    assert granularity is not None
    shape = granularity.shape(*stored.shape)
    scales: Array | None = matrix.scale
    if isinstance(granularity, PerGroup):
        scales = matrix.scales(granularity.columns)
    elif matrix.scale.shape != shape:
        scales = np.broadcast_to(matrix.scale, shape) if matrix.scale.shape == (1,) else None
    if scales is None:
        raise ConfigError(
            f"{checkpoint.path}: tensor '{name}' must have one scale "
            f"per {unit_of(granularity)}, as in format {stored.format.name}, but has more"
        )
    with np.errstate(over="ignore"):  # checked below
        converted = scales.astype(DTYPES[granularity.dtype])
    if (is_rounded := converted != scales).any():
        raise ConfigError(
            f"{checkpoint.path}: tensor '{name}' must have scales that are exact in "
            f"{converted.dtype}, as format {stored.format.name} stores them, but has "
            f"{scales[is_rounded][0]:g}; import it with --weights f32, or choose another file of "
            "the model"
        )
    return granularity.encode(converted) if isinstance(granularity, PerGroup) else converted
