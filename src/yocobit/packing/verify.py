"""Verification of every byte of a packed model; read_model skips the weights for speed.

The engine, too, checks that every weight is a valid value, before its first session; only this
module checks the hashes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

from yocobit.disk import sha256
from yocobit.packing.file_format import MODEL, TOKENIZER, PackedModelError, TensorInfo
from yocobit.packing.reader import PackedModel, read_model
from yocobit.packing.writer import Progress

_CHUNK_BYTES = 1 << 24


def verify(model: PackedModel | Path, progress: Progress | None = None) -> list[str]:
    """Return the problems of the weights and the tokenizer of a packed model, one line each.

    For a directory, calls read_model first, which raises PackedModelError for an invalid structure.
    `progress` receives the bytes of weights that were read, and all of them.
    """
    if isinstance(model, Path):
        model = read_model(model)
    problems = []
    done, total = 0, sum(tensor.end - tensor.begin for tensor in model.tensors.values())
    try:
        with model.file.open("rb") as stream:
            for name, tensor in model.tensors.items():
                expected = model.metadata.get(f"sha256:{name}")
                actual = _sha256(stream, tensor)
                if actual != expected:
                    problems.append(
                        f"{model.file}: tensor '{name}' must have sha256 {expected!r} but has "
                        f"'{actual}'; copy the file or pack the checkpoint again"
                    )
                done += tensor.end - tensor.begin
                if progress is not None:
                    progress(done, total)
        invalid = model.open().find_problems()
        problems += [f"{model.file}: {line}; pack the checkpoint again" for line in invalid]
        problems += _tokenizer_problems(model)
    except OSError as error:
        raise PackedModelError(f"{model.path}: cannot be read ({error})") from None
    return problems


def _sha256(stream: BinaryIO, tensor: TensorInfo) -> str:
    digest = hashlib.sha256()
    stream.seek(tensor.begin)
    for begin in range(tensor.begin, tensor.end, _CHUNK_BYTES):
        digest.update(stream.read(min(_CHUNK_BYTES, tensor.end - begin)))
    return digest.hexdigest()


def _tokenizer_problems(model: PackedModel) -> list[str]:
    file = model.path / TOKENIZER
    expected = model.metadata.get("tokenizer_sha256")
    if not file.exists():
        lost = f"{file}: is missing, but {MODEL} was packed with it; copy it or pack again"
        return [] if expected is None else [lost]
    actual = sha256(file)
    if actual == expected:
        return []
    if expected is None:
        return [f"{file}: must not be there, as {MODEL} was packed without one; delete it"]
    return [
        f"{file}: must have sha256 {expected!r}, as {MODEL} records, but has '{actual}'; copy it "
        "or pack the checkpoint again"
    ]
