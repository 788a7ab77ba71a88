"""Verification of every byte of a packed model; read_model skips the weights for speed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from yocobit.packing.format import DTYPES, MODEL, TOKENIZER, PackedModelError, TensorInfo
from yocobit.packing.formats import WeightFormat
from yocobit.packing.reader import PackedModel, read_model

_CHUNK_BYTES = 1 << 24  # a multiple of every item size


def verify(model: PackedModel | Path) -> list[str]:
    """Return the problems of the weights and the tokenizer of a packed model, one line each.

    For a directory, calls read_model first, which raises PackedModelError for an invalid structure.
    """
    if isinstance(model, Path):
        model = read_model(model)
    problems = []
    try:
        with model.file.open("rb") as stream:
            for name, tensor in model.tensors.items():
                subject = f"{model.file}: tensor '{name}'"
                expected = model.metadata.get(f"sha256:{name}")
                stored = model.parameters.get(name)  # None: scales
                format = stored.format if stored else None
                problems += _tensor_problems(stream, tensor, subject, expected, format)
        problems += _tokenizer_problems(model)
    except OSError as error:
        raise PackedModelError(f"{model.path}: cannot be read ({error})") from None
    return problems


def _tensor_problems(
    stream: BinaryIO,
    tensor: TensorInfo,
    subject: str,
    expected: str | None,
    format: WeightFormat | None,
) -> list[str]:
    digest = hashlib.sha256()
    n_invalid = n_not_finite = 0
    for chunk in _chunks(stream, tensor):
        digest.update(chunk)
        values = np.frombuffer(chunk, DTYPES[tensor.dtype])
        if format is not None and format.has_invalid_codes:
            n_invalid += int(np.count_nonzero(~format.valid_bytes[values]))
        if values.dtype.kind == "f":
            n_not_finite += int((~np.isfinite(values)).sum())
    problems = []
    if digest.hexdigest() != expected:
        problems.append(
            f"{subject} must have sha256 {expected!r} but has '{digest.hexdigest()}'; copy the "
            "file or pack the checkpoint again"
        )
    if n_invalid and format is not None:
        problems.append(
            f"{subject} must have codes 0 to {len(format.values) - 1} but has larger ones in "
            f"{n_invalid} bytes; pack the checkpoint again"
        )
    if n_not_finite:
        problems.append(
            f"{subject} must be finite but has {n_not_finite} values that are NaN or infinite; "
            "pack the checkpoint again"
        )
    return problems


def _tokenizer_problems(model: PackedModel) -> list[str]:
    file = model.path / TOKENIZER
    expected = model.metadata.get("tokenizer_sha256")
    if not file.exists():
        lost = f"{file}: is missing, but {MODEL} was packed with it; copy it or pack again"
        return [] if expected is None else [lost]
    actual = hashlib.sha256(file.read_bytes()).hexdigest()
    if actual == expected:
        return []
    if expected is None:
        return [f"{file}: must not be there, as {MODEL} was packed without one; delete it"]
    return [
        f"{file}: must have sha256 {expected!r}, as {MODEL} says, but has '{actual}'; copy it or "
        "pack the checkpoint again"
    ]


def _chunks(stream: BinaryIO, tensor: TensorInfo) -> Iterator[bytes]:
    stream.seek(tensor.begin)
    for begin in range(tensor.begin, tensor.end, _CHUNK_BYTES):
        yield stream.read(min(_CHUNK_BYTES, tensor.end - begin))
