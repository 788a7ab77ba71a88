"""Writing a packed model, tensor by tensor, into a directory that appears atomically.

Format: docs/reference/packed-format.md. Reader: reader.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from yocobit.config import ModelConfig
from yocobit.disk import claim_directory, flush, writing
from yocobit.packing.file_format import (
    ALIGNMENT,
    CHAT_TEMPLATE,
    CONFIG,
    DTYPES,
    FORMAT,
    FORMAT_VERSION,
    FORMATS_KEY,
    GENERATION,
    MODEL,
    TOKENIZER,
    TensorSpec,
    canonical_json,
    header_sha256,
)
from yocobit.packing.layout import Array
from yocobit.packing.reader import PackedModel, read_model
from yocobit.packing.stored_parameters import StoredParameter, formats_to_record, tensors_of

_PIECE_BYTES = 16 << 20  # a multiple of the huge-page size
_NO_HASH = "0" * 64

Progress = Callable[[int, int], object]  # receives the bytes that are done, and all bytes


def write_model(
    out: Path,
    config: ModelConfig,
    parameters: Mapping[str, StoredParameter],
    tensors: Iterable[tuple[str, Array]],
    tokenizer: bytes | None = None,
    generation: Mapping[str, Any] | None = None,
    chat_template: bytes | None = None,
) -> PackedModel:
    """Write a packed model into the directory `out`; ConfigError unless it is new or empty.

    `tensors` yields each tensor that stores `parameters`, in the order of tensors_of().
    """
    config_json = _json(config.to_json())
    metadata = {"format": FORMAT, "format_version": FORMAT_VERSION}
    metadata["config_sha256"] = hashlib.sha256(config_json).hexdigest()
    specs = tensors_of(parameters)
    if formats := formats_to_record(config, parameters):
        metadata[FORMATS_KEY] = json.dumps(formats)
    with new_directory(out) as directory:
        (directory / CONFIG).write_bytes(config_json)
        if tokenizer is not None:
            (directory / TOKENIZER).write_bytes(tokenizer)
            metadata["tokenizer_sha256"] = hashlib.sha256(tokenizer).hexdigest()
        (directory / GENERATION).write_bytes(_json(generation or {}))
        if chat_template is not None:
            (directory / CHAT_TEMPLATE).write_bytes(chat_template)
        write_safetensors(directory / MODEL, specs, tensors, metadata)
        model = read_model(directory)
    return dataclasses.replace(model, path=out, file=out / MODEL)


def write_safetensors(
    path: Path,
    specs: Mapping[str, TensorSpec],
    tensors: Iterable[tuple[str, Array]],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file with aligned tensors; its metadata has a hash of each.

    Data starts at a multiple of ALIGNMENT; tensors whose size is a multiple of it come first.
    `tensors` yields each of `specs` in order. Holds one tensor at a time, and the unaligned ones,
    which are small.
    """
    order = sorted(specs, key=lambda name: specs[name].size_bytes % ALIGNMENT != 0)
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    hashes = {f"sha256:{name}": _NO_HASH for name in order}
    position = 0
    for name in order:
        offsets = [position, position := position + specs[name].size_bytes]
        dtype, shape = specs[name]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
    header_bytes = len(_raw_header(header, hashes))

    unaligned: list[Array] = []
    # The buffer has the size of a piece, so that whole pieces are written to the file.
    with path.open("wb", buffering=_PIECE_BYTES) as stream:
        _write(stream, b"\0" * header_bytes)
        for name, array in _checked(tensors, specs):
            hashes[f"sha256:{name}"] = hashlib.sha256(array.data).hexdigest()
            if array.nbytes % ALIGNMENT:
                unaligned.append(array)
            else:
                _write(stream, array.data)
        for array in unaligned:
            _write(stream, array.data)
        stream.seek(0)
        stream.write(_raw_header(header, hashes))


def _checked(
    tensors: Iterable[tuple[str, Array]], specs: Mapping[str, TensorSpec]
) -> Iterator[tuple[str, Array]]:
    """Yield contiguous tensors; ValueError unless they are the expected ones, in order."""
    for (name, array), expected in zip(tensors, specs.items(), strict=True):
        dtype, shape = expected[1]
        if (name, array.shape, array.dtype) != (expected[0], shape, np.dtype(DTYPES[dtype])):
            raise ValueError(
                f"tensor must be '{expected[0]}' {dtype} {shape} but is '{name}' "
                f"{array.dtype} {array.shape}"
            )
        yield name, np.ascontiguousarray(array)


def _raw_header(header: dict[str, Any], hashes: dict[str, str]) -> bytes:
    """Return the header with its length prefix; its size does not depend on the hashes."""
    metadata = {**header["__metadata__"], **hashes, "header_sha256": _NO_HASH}
    metadata["header_sha256"] = header_sha256({**header, "__metadata__": metadata})
    raw = canonical_json({**header, "__metadata__": metadata})
    raw += b" " * (-(8 + len(raw)) % ALIGNMENT)
    return len(raw).to_bytes(8, "little") + raw


def _write(stream: BinaryIO, data: bytes | memoryview) -> None:
    """Write in pieces that end at multiples of _PIECE_BYTES of the file.

    Linux caches an aligned write of this size in large pages and maps them unchanged. Decoding then
    reads weights 1.5 times as fast.
    """
    view = memoryview(data)
    if view.nbytes == 0:
        return  # cannot be cast
    rest = view.cast("B")
    while rest:
        piece = rest[: _PIECE_BYTES - stream.tell() % _PIECE_BYTES]
        stream.write(piece)
        rest = rest[len(piece) :]


def tracked(
    tensors: Iterable[tuple[str, Array]],
    parameters: Mapping[str, StoredParameter],
    progress: Progress | None,
) -> Iterator[tuple[str, Array]]:
    """Yield the tensors that store `parameters`, and report the bytes that were consumed."""
    total = sum(spec.size_bytes for spec in tensors_of(parameters).values())
    done = 0
    for name, array in tensors:
        yield name, array
        done += array.nbytes
        if progress is not None:
            progress(done, total)


def check_new(out: Path) -> None:
    """Raise ConfigError unless a model can be written to `out`; for use before long work."""
    claim_directory(out)


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


@contextlib.contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """Yield a directory to fill; it becomes `out` on success and is deleted otherwise."""
    name, out = out, out.resolve()
    check_new(out)
    created = [parent for parent in out.parents if not parent.exists()]  # innermost first
    # Not only by the process: containers that share a directory have equal numbers.
    partial = out.parent / f".{out.name}.partial-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        with writing(name):
            partial.mkdir(parents=True)
            yield partial
            for path in (*partial.iterdir(), partial):
                flush(path)
            try:
                partial.rename(out)
            except OSError:
                check_new(name)  # another process may have written it meanwhile
                raise
    except BaseException:  # Ctrl-C too
        shutil.rmtree(partial, ignore_errors=True)
        for parent in created:
            with contextlib.suppress(OSError):  # not empty: another process uses it
                parent.rmdir()
        raise
    flush(out.parent)
