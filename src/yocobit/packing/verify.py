"""Checking every byte of a packed model, which reading it leaves out for speed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from yocobit.packing.reader import (
    MODEL,
    TOKENIZER,
    PackedModel,
    PackedModelError,
    TensorInfo,
    is_projection,
    read_model,
)

_CHUNK_BYTES = 1 << 24  # whole values of every dtype


def verify(path: Path) -> list[str]:
    """Return what is wrong with the weights and the tokenizer of a packed model, a line each.

    Raises PackedModelError, as read_model does, where its structure is wrong already.
    """
    model = read_model(path)
    problems = []
    try:
        with model.file.open("rb") as stream:
            for name, tensor in model.tensors.items():
                subject = f"{model.file}: tensor '{name}'"
                expected = model.metadata.get(f"sha256:{name}")
                is_ternary = (
                    model.config.weights == "ternary"
                    and tensor.dtype == "U8"
                    and is_projection(name)
                )
                problems += _tensor_problems(stream, tensor, subject, expected, is_ternary)
        problems += _tokenizer_problems(model)
    except OSError as error:
        raise PackedModelError(f"{path}: cannot be read ({error})") from None
    return problems


def _tensor_problems(
    stream: BinaryIO, tensor: TensorInfo, subject: str, expected: str | None, is_ternary: bool
) -> list[str]:
    digest = hashlib.sha256()
    n_invalid = n_not_finite = 0
    for chunk in _chunks(stream, tensor):
        digest.update(chunk)
        if is_ternary:
            codes = np.frombuffer(chunk, dtype=np.uint8)
            n_invalid += int(np.count_nonzero(codes & codes >> 1 & 0b01010101))
        if tensor.dtype in ("F16", "F32"):
            values = np.frombuffer(chunk, dtype="<f2" if tensor.dtype == "F16" else "<f4")
            n_not_finite += int((~np.isfinite(values)).sum())
    problems = []
    if digest.hexdigest() != expected:
        problems.append(
            f"{subject} must have sha256 {expected!r} but has '{digest.hexdigest()}'; copy the "
            "file or pack the checkpoint again"
        )
    if n_invalid:
        problems.append(
            f"{subject} must have codes 0, 1 and 2 but has code 3 in {n_invalid} bytes; pack "
            "the checkpoint again"
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
