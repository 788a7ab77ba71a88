"""Reading a packed model: where its tensors lie, once the file has been found sound.

Checks structure, the hashes of header and config.json, and that norms and scales are finite; it
does not read the weights themselves (verify.py does). docs/format.md is the format.

Letters: M output features   K input features
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from yocobit.config import ModelConfig
from yocobit.mixers import parameter_shapes
from yocobit.packing.layout import int4_shape, sign_shape, ternary_shape

MODEL = "model.safetensors"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"
GENERATION = "generation_config.json"
FORMAT = "yocobit"
FORMAT_VERSION = "1"
ALIGNMENT = 64  # of every tensor whose size is a multiple of it
ITEM_BYTES = {"U8": 1, "I8": 1, "F16": 2, "F32": 4}

_SMALLEST_ALIGNMENT = 4  # of the others
_LARGEST_HEADER = 100_000_000  # bytes, as in the safetensors library
_AGAIN = "copy the file or pack the checkpoint again"


class PackedModelError(ValueError):
    """A packed model that cannot be used: names file or tensor, rule, actual value and remedy."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in the file; `begin` and `end` are bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class PackedModel:
    """A packed model whose structure has been checked."""

    config: ModelConfig
    path: Path  # the directory
    file: Path  # the safetensors file in it
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]

    def attending(self, to: str | None) -> PackedModel:
        """Return this model with other cross attention, as ModelConfig.attending; None: its own."""
        return self if to is None else replace(self, config=self.config.attending(to))


def is_packed(path: Path) -> bool:
    """Say whether a directory holds a packed model, sound or not; a checkpoint is none."""
    try:
        with safe_open(path / MODEL, "numpy") as file:
            return bool((file.metadata() or {}).get("format") == FORMAT)
    except (OSError, SafetensorError):
        return False


def read_model(path: Path) -> PackedModel:
    """Read the packed model in the directory `path`, weights excepted."""
    file = path / MODEL
    try:
        _check_files(path)
        with file.open("rb") as stream:
            header, data_begin = _read_header(stream, file)
            metadata = _check_metadata(header, file)
            _check_config(path, metadata)
            config = ModelConfig.from_json(path / CONFIG)
            tensors = _tensors(header, config, file, data_begin)
            _check_offsets(tensors, file, data_begin)
            _check_floats(stream, tensors, config, file)
    except (OSError, RecursionError) as error:  # the latter: JSON that is nested too deeply
        raise PackedModelError(f"{path}: cannot be read ({error})") from None
    return PackedModel(config, path, file, tensors, metadata)


def is_table(name: str) -> bool:
    """Say whether a parameter is the embedding or the head."""
    return name in ("embedding.weight", "head.weight")


def is_projection(name: str) -> bool:
    """Say whether a parameter is a projection that weights = "ternary" or "sign" quantises."""
    return name.endswith("_proj.weight") and not name.endswith(".decay_proj.weight")


def expected_tensors(
    config: ModelConfig, float_dtype: str = "F32", head: str = "int8"
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return dtype and shape of every tensor that the file must hold, and may hold.

    `float_dtype` is that of the weights of a dense model, `head` ("int8" or "int4") is how others
    store theirs; an int4 head is there even where the embedding is tied to it.
    """
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in parameter_shapes(config).items():
        if not is_table(name) and not is_projection(name):
            tensors[name] = "F32", shape
        elif config.weights == "dense":
            tensors[name] = float_dtype, shape
        elif is_table(name):
            tensors[name] = "I8", shape
            tensors[f"{name}_scale"] = "F32", shape[:1]
        else:
            code_shape = ternary_shape if config.weights == "ternary" else sign_shape
            tensors[name] = "U8", code_shape(*shape)
            tensors[f"{name}_scale"] = "F32", (1,)
    if head == "int4" and config.weights != "dense":
        head_shape = int4_shape(config.vocab_size, config.d_model)
        tensors["head.weight"] = "U8", head_shape
        tensors["head.weight_scale"] = "F16", head_shape[:3]
    return tensors


def header_sha256(header: dict[str, Any]) -> str:
    """Return the SHA-256 of a safetensors header without its own header_sha256."""
    metadata = {k: v for k, v in header["__metadata__"].items() if k != "header_sha256"}
    canonical = canonical_json({**header, "__metadata__": metadata})
    return hashlib.sha256(canonical).hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return JSON with sorted keys, no spaces and ASCII only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def _check_files(path: Path) -> None:
    if not path.is_dir():
        kind = "is a file, not a directory" if path.exists() else "no such directory"
        raise PackedModelError(f"{path}: {kind}; name the directory of a packed model")
    if (path / "checkpoints").is_dir() or (path / "optimizer.safetensors").exists():
        raise PackedModelError(f"{path}: is a checkpoint, not a packed model; run yocobit pack")
    for name in (CONFIG, MODEL):
        if not (path / name).exists():
            raise PackedModelError(f"{path}: holds no {name}; run yocobit pack to make one")


def _read_header(stream: BinaryIO, file: Path) -> tuple[dict[str, Any], int]:
    """Return the header and the byte at which tensor data begins."""
    size = int.from_bytes(length := stream.read(8), "little")
    if len(length) == 8 and size > _LARGEST_HEADER:
        raise PackedModelError(
            f"{file}: header must have at most {_LARGEST_HEADER} bytes but has {size}; {_AGAIN}"
        )
    raw = stream.read(size)
    if len(length) < 8 or len(raw) < size:
        missing = 8 + size - len(length) - len(raw)
        raise PackedModelError(f"{file}: is truncated: header lacks {missing} bytes; {_AGAIN}")
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except ValueError as error:
        raise PackedModelError(f"{file}: header is not valid JSON ({error}); {_AGAIN}") from None
    if not isinstance(header, dict):
        kind = type(header).__name__
        raise PackedModelError(f"{file}: header must be an object but is {kind}; {_AGAIN}")
    return header, 8 + size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {repeated!r} occurs twice")
    return fields


def _check_metadata(header: dict[str, Any], file: Path) -> dict[str, str]:
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise PackedModelError(f"{file}: is not a packed model; run yocobit pack on a checkpoint")
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise PackedModelError(
            f"{file}: format_version must be {FORMAT_VERSION!r} but is {version!r}; "
            "pack the checkpoint again with this yocobit"
        )
    for name, value in metadata.items():
        if not isinstance(value, str):
            raise PackedModelError(f"{file}: metadata {name!r} must be a string but is {value!r}")
    if metadata.get("header_sha256") != (actual := header_sha256(header)):
        raise PackedModelError(
            f"{file}: header must have sha256 {metadata.get('header_sha256')!r} but has "
            f"'{actual}'; {_AGAIN}"
        )
    return metadata


def _check_config(path: Path, metadata: dict[str, str]) -> None:
    actual = hashlib.sha256((path / CONFIG).read_bytes()).hexdigest()
    if metadata.get("config_sha256") != actual:
        raise PackedModelError(
            f"{path / CONFIG}: must have sha256 {metadata.get('config_sha256')!r}, as {MODEL} "
            f"says, but has '{actual}'; undo the edit or pack the checkpoint again"
        )


def _tensors(
    header: dict[str, Any], config: ModelConfig, file: Path, data_begin: int
) -> dict[str, TensorInfo]:
    """Return the tensors in the order of the model; each is what the configuration implies."""
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}

    def has_dtype(name: str, dtype: str) -> bool:
        entry = entries.get(name)
        return isinstance(entry, dict) and entry.get("dtype") == dtype

    expected = expected_tensors(
        config,
        "F16" if has_dtype("embedding.weight", "F16") else "F32",
        "int4" if has_dtype("head.weight", "U8") else "int8",
    )
    for name in entries:
        if name not in expected:
            raise PackedModelError(f"{file}: tensor {name!r} must not be there; {_AGAIN}")
    tensors = {}
    for name, (dtype, shape) in expected.items():
        if name not in entries:
            raise PackedModelError(f"{file}: tensor '{name}' is missing; {_AGAIN}")
        entry = entries[name]
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise PackedModelError(
                f"{file}: tensor '{name}' must have dtype, shape and data_offsets but is {entry!r}"
            )
        if entry["dtype"] != dtype or not _is_list(entry["shape"], shape):
            raise PackedModelError(
                f"{file}: tensor '{name}' must be {dtype} {list(shape)} but is "
                f"{entry['dtype']!r} {entry['shape']!r}; {_AGAIN}"
            )
        size = math.prod(shape) * ITEM_BYTES[dtype]
        begin = entry["data_offsets"][0] if _is_pair(entry["data_offsets"]) else 0
        if not _is_list(entry["data_offsets"], (begin, begin + size)):
            raise PackedModelError(
                f"{file}: tensor '{name}' must have two data_offsets, {size} apart, but has "
                f"{entry['data_offsets']!r}; {_AGAIN}"
            )
        tensors[name] = TensorInfo(dtype, shape, data_begin + begin, data_begin + begin + size)
    return tensors


def _is_pair(value: Any) -> bool:
    """Say whether a JSON value is a list of two, the first of them a possible offset."""
    is_pair = isinstance(value, list) and len(value) == 2 and type(value[0]) is int
    return is_pair and 0 <= value[0] < 1 << 62


def _is_list(value: Any, items: tuple[int, ...]) -> bool:
    """Say whether a JSON value is the list of these integers; true and 1.0 are not 1."""
    return isinstance(value, list) and repr(value) == repr(list(items))


def _check_offsets(tensors: dict[str, TensorInfo], file: Path, data_begin: int) -> None:
    """Check that the tensors cover the data without hole or overlap, and their alignment."""
    position = data_begin
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].begin):
        if tensor.begin != position:
            raise PackedModelError(
                f"{file}: tensor '{name}' must begin at byte {position}, where the one before "
                f"ends, but begins at {tensor.begin}; {_AGAIN}"
            )
        size = tensor.end - tensor.begin
        alignment = ALIGNMENT if size % ALIGNMENT == 0 else _SMALLEST_ALIGNMENT
        if tensor.begin % alignment:
            raise PackedModelError(
                f"{file}: tensor '{name}' must begin at a multiple of {alignment} but begins at "
                f"byte {tensor.begin}; pack the checkpoint again"
            )
        position = tensor.end
    if (size := file.stat().st_size) != position:
        fault = "is truncated" if size < position else "has something appended"
        raise PackedModelError(
            f"{file}: {fault}: must have {position} bytes but has {size}; {_AGAIN}"
        )


def _check_floats(
    stream: BinaryIO, tensors: dict[str, TensorInfo], config: ModelConfig, file: Path
) -> None:
    """Check what is small: norms and decays are finite, scales positive too."""
    for name, tensor in tensors.items():
        if tensor.dtype == "F16" and name.endswith("_scale"):
            stream.seek(tensor.begin)
            bits = np.frombuffer(stream.read(tensor.end - tensor.begin), dtype="<u2")
            if bits.max() >= 0x7C00:  # infinity, NaN, and whatever has the sign bit
                raise PackedModelError(
                    f"{file}: tensor '{name}' must be finite and not negative but is not; {_AGAIN}"
                )
        if tensor.dtype != "F32" or is_table(name) or is_projection(name):
            continue
        stream.seek(tensor.begin)
        values = np.frombuffer(stream.read(tensor.end - tensor.begin), dtype="<f4")
        is_scale = name.endswith("_scale")
        good = np.isfinite(values) & (values > 0) if is_scale else np.isfinite(values)
        if not good.all():
            rule = "finite and positive" if is_scale else "finite"
            raise PackedModelError(
                f"{file}: tensor '{name}' must be {rule} but holds {values[~good][0]}; {_AGAIN}"
            )
