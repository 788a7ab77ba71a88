"""Headers of safetensors files: 8 bytes of length, then JSON that describes each tensor.

Sizes and types of all entries are checked here before a tensor is read, so that no content makes a
reader allocate more memory than the file has bytes.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeGuard

from yocobit.errors import ConfigError, UserError, shown
from yocobit.reading import boundary, open_regular

MAX_HEADER = 100_000_000  # bytes, as in the safetensors library
_REMEDY = "copy the file or pack the checkpoint again"


class TensorEntry(NamedTuple):
    """A tensor of a file."""

    file: Path
    dtype: str  # as in the file, such as "BF16"
    shape: tuple[int, ...]
    begin: int  # byte offsets in the file
    end: int


def read_header(
    stream: BinaryIO, file: Path, kind: type[UserError] = ConfigError
) -> tuple[dict[str, Any], int]:
    """Return the JSON object of a header and the offset of the tensor data; `kind` if invalid."""
    size = int.from_bytes(length := stream.read(8), "little")
    if len(length) == 8 and size > MAX_HEADER:
        raise kind(f"{file}: header must have at most {MAX_HEADER} bytes but has {size}; {_REMEDY}")
    raw = stream.read(min(size, os.fstat(stream.fileno()).st_size))
    if len(length) < 8 or len(raw) < size:
        missing = 8 + size - len(length) - len(raw)
        raise kind(f"{file}: is truncated: header lacks {missing} bytes; {_REMEDY}")
    with boundary(file, "header is not valid JSON", kind):
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    if not isinstance(header, dict):
        raise kind(f"{file}: header must be an object but is {type(header).__name__}; {_REMEDY}")
    return header, 8 + size


def read_entries(file: Path, item_bytes: Mapping[str, int]) -> dict[str, TensorEntry]:
    """Return the tensors of a file; ConfigError if one is invalid or is not inside the file.

    Sizes are checked for the dtypes of `item_bytes`; others may be present.
    """
    try:
        with open_regular(file) as stream:
            return entries_of(stream, file, item_bytes)[0]
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None


def entries_of(
    stream: BinaryIO, file: Path, item_bytes: Mapping[str, int]
) -> tuple[dict[str, TensorEntry], dict[str, Any]]:
    """Return the tensors of an open file, as read_entries does, and the metadata of its header."""
    header, data_begin = read_header(stream, file)
    data_bytes = os.fstat(stream.fileno()).st_size - data_begin
    metadata = header.pop("__metadata__", None)
    entries = {}
    for name, entry in header.items():
        found = _entry(entry)
        if found is None or not found[2] <= found[3] <= data_bytes:
            raise ConfigError(
                f"{file}: tensor {shown(name)} must have a dtype, a shape and two "
                f"data_offsets up to {data_bytes} but is {shown(entry)}"
            )
        dtype, shape, begin, end = found
        size = math.prod(shape) * item_bytes.get(dtype, 0)
        if dtype in item_bytes and size != end - begin:
            raise ConfigError(
                f"{file}: tensor {shown(name)} must have {size} bytes, as {dtype} "
                f"{shown(list(shape))}, but has {end - begin}"
            )
        entries[name] = TensorEntry(file, dtype, shape, data_begin + begin, data_begin + end)
    return entries, metadata if isinstance(metadata, dict) else {}


def _entry(entry: Any) -> tuple[str, tuple[int, ...], int, int] | None:
    """Return dtype, shape and offsets of an entry; None unless they are of these types."""
    if not isinstance(entry, dict):
        return None
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not _are_sizes(shape) or not _are_sizes(offsets):
        return None
    return (dtype, tuple(shape), offsets[0], offsets[1]) if len(offsets) == 2 else None


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    """Whether a JSON value is a list of sizes; true and 1.0 are not sizes."""
    is_list = isinstance(value, list) and len(value) <= 64
    return is_list and all(type(item) is int and 0 <= item < 1 << 62 for item in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        repeated = next(name for name, n in counts.items() if n > 1)
        raise ValueError(f"key {shown(repeated)} occurs twice")
    return fields
