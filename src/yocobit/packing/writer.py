"""Writing a packed model: a directory that appears whole or not at all.

docs/format.md is the format; reader.py is what reads it back.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yocobit.config import ConfigError, ModelConfig
from yocobit.disk import flush, writing
from yocobit.packing.reader import (
    ALIGNMENT,
    CHAT_TEMPLATE,
    CONFIG,
    FORMAT,
    FORMAT_VERSION,
    GENERATION,
    MODEL,
    TOKENIZER,
    PackedModel,
    canonical_json,
    header_sha256,
    read_model,
)

Array = NDArray[Any]

_PIECE_BYTES = 16 << 20  # a multiple of a huge page
_DTYPES = {"uint8": "U8", "int8": "I8", "float16": "F16", "float32": "F32"}


def write_model(
    out: Path,
    config: ModelConfig,
    tensors: dict[str, Array],
    tokenizer: bytes | None,
    generation: dict[str, Any],
    chat_template: bytes | None = None,
) -> PackedModel:
    """Write a packed model into the new directory `out`; ConfigError if that exists."""
    config_json = _json(config.to_json())
    metadata = {"format": FORMAT, "format_version": FORMAT_VERSION}
    metadata["config_sha256"] = hashlib.sha256(config_json).hexdigest()
    with _new_directory(out) as directory:
        (directory / CONFIG).write_bytes(config_json)
        if tokenizer is not None:
            (directory / TOKENIZER).write_bytes(tokenizer)
            metadata["tokenizer_sha256"] = hashlib.sha256(tokenizer).hexdigest()
        (directory / GENERATION).write_bytes(_json(generation))
        if chat_template is not None:
            (directory / CHAT_TEMPLATE).write_bytes(chat_template)
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
    _write_in_pieces(path, [len(raw).to_bytes(8, "little"), raw, *map(arrays.get, order)])


def _write_in_pieces(path: Path, parts: Iterable[Any]) -> None:
    """Write a file so that it can be read from huge pages.

    Linux keeps what is written together, from a multiple of its size on, in the largest pages that
    fit, and maps them as they are: decoding then reads weights half as fast again.
    """
    position = 0
    with path.open("wb", buffering=_PIECE_BYTES) as stream:  # full buffers go out as they are
        for part in parts:
            view = memoryview(part)
            if view.nbytes == 0:
                continue  # cannot be cast
            rest = view.cast("B")
            while rest:
                now = rest[: _PIECE_BYTES - position % _PIECE_BYTES]
                position += stream.write(now)
                rest = rest[len(now) :]


def check_new(out: Path) -> None:
    """Raise ConfigError if a model cannot be written to `out`: ask before long work."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: must not exist or be an empty directory; choose another name")


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


@contextlib.contextmanager
def _new_directory(out: Path) -> Iterator[Path]:
    """Give a directory to fill, which becomes `out` if the block ends well and else vanishes."""
    name, out = out, out.resolve()
    check_new(out)
    made = [parent for parent in out.parents if not parent.exists()]  # innermost first
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        with writing(name):
            partial.mkdir(parents=True)
            yield partial
            for path in (*partial.iterdir(), partial):
                flush(path)
            partial.rename(out)
    except BaseException:  # Ctrl-C too
        shutil.rmtree(partial, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # not empty: someone else uses it by now
                parent.rmdir()
        raise
    flush(out.parent)
