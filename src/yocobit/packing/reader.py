"""Reading a packed model: its configuration, and the formats and offsets of its tensors.

Validates the structure, the hashes of header and config.json, and that norms and scales are finite.
Does not read the weights; verify.py does. Format: docs/reference/packed-format.md.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from yocobit import _native
from yocobit.config import ModelConfig
from yocobit.errors import ConfigError, shown
from yocobit.packing.file_format import (
    ALIGNMENT,
    CONFIG,
    DTYPES,
    FORMAT,
    FORMAT_VERSION,
    FORMATS_KEY,
    MODEL,
    SMALLEST_ALIGNMENT,
    PackedModelError,
    TensorInfo,
    header_sha256,
    scale_name,
)
from yocobit.packing.formats import FORMATS, WeightFormat
from yocobit.packing.safetensors_header import read_header
from yocobit.packing.scales import PerGroup
from yocobit.packing.stored_parameters import StoredParameter, parameters_by_dtype, tensors_of
from yocobit.reading import boundary, open_regular, parse_json, read_bytes
from yocobit.settings import whole_number

_MAX_THREADS = 1024
_REMEDY = "copy the file or pack the checkpoint again"

EXACT_SUFFIX = "-exact"  # of the identity of a model with int16 activations


@dataclass(frozen=True)
class PackedModel:
    """A packed model whose structure is valid."""

    config: ModelConfig
    path: Path  # the directory
    file: Path  # the safetensors file in it
    parameters: dict[str, StoredParameter]
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]

    @property
    def projection_format(self) -> WeightFormat:
        """The format of the projections; if they have several, the first of the trained kind."""
        projections = [p.format for p in self.parameters.values() if p.role == "projection"]
        trained = (format for format in projections if format.weights == self.config.weights)
        return next(trained, projections[0])

    @property
    def head_format(self) -> WeightFormat:
        """The format of the head; that of the embedding if they share one matrix."""
        stored = self.parameters.get("head.weight", self.parameters["embedding.weight"])
        return stored.format

    def open(self, threads: int = 1, kernels: str | None = None) -> _native.Engine:
        """Map the file for a native engine.

        ConfigError for too many threads, kernels that this CPU lacks, or a file that cannot be
        mapped; PackedModelError for one that does not hold the tensors.
        """
        threads = whole_number("threads", threads, 1, _MAX_THREADS)
        known = _native.supported_kernels()
        if kernels is not None and kernels not in [*known, *_native.emulated_kernels()]:
            raise ConfigError(f"kernels must be {' or '.join(known)} here but is {kernels!r}")
        tensors = {n: (t.dtype, list(t.shape), t.begin, t.end) for n, t in self.tensors.items()}
        formats = {name: stored.format.name for name, stored in self.parameters.items()}
        config = self.config.to_dict()
        try:
            file = os.fsencode(self.file).decode()
        except UnicodeDecodeError:
            raise ConfigError(
                f"{self.path}: must be a path in UTF-8 but is not; rename it"
            ) from None
        try:
            return _native.Engine(file, config, tensors, formats, kernels or "", threads)
        except RuntimeError as error:  # the file, or the number of threads that the system grants
            raise ConfigError(str(error)) from None
        except ValueError as error:
            raise PackedModelError(str(error)) from None

    def attending(self, to: str | None) -> PackedModel:
        """Return this model with other cross attention, as in ModelConfig.attending.

        None is the model's own.
        """
        return self if to is None else replace(self, config=self.config.attending(to))

    def with_activations(self, exact: bool) -> PackedModel:
        """Return this model with int16 instead of int8 activations for weights-only formats.

        ConfigError if it has no matrix in such a format.
        """
        if exact and not self._has_groups:
            raise ConfigError(
                f"{self.path}: has no matrix in a format of weights-only quantisation, so "
                "exact=True (--exact) would change nothing; leave it out"
            )
        exact = exact or self.config.exact_activations
        return replace(self, config=self.config.replace(exact_activations=exact))

    @property
    def identity(self) -> str:
        """Identifies weights and arithmetic: saved sessions of another identity do not match."""
        suffix = EXACT_SUFFIX if self.config.exact_activations and self._has_groups else ""
        return self.metadata["header_sha256"] + suffix

    @property
    def _has_groups(self) -> bool:
        encodings = (stored.format.activations for stored in self.parameters.values())
        return any(encoding.group_columns is not None for encoding in encodings)


def read_model(path: Path) -> PackedModel:
    """Read the packed model in the directory `path`, except for its weights."""
    file = path / MODEL
    try:
        _check_files(path)
        with (
            boundary(file, "is not a packed model", PackedModelError),
            open_regular(file) as stream,
        ):
            header, data_begin = read_header(stream, file, PackedModelError)
            metadata = _check_metadata(header, file)
            _check_config(path, metadata)
            config = ModelConfig.from_json(path / CONFIG)
            parameters = _parameters(header, metadata, config, file)
            tensors = _tensors(header, parameters, file, data_begin)
            _check_offsets(tensors, file, data_begin)
            _check_floats(stream, parameters, tensors, file)
    except OSError as error:
        raise PackedModelError(f"{path}: cannot be read ({error})") from None
    return PackedModel(config, path, file, parameters, tensors, metadata)


def _check_files(path: Path) -> None:
    if not path.is_dir():
        kind = "is a file, not a directory" if path.exists() else "no such directory"
        raise PackedModelError(f"{path}: {kind}; name the directory of a packed model{_hint(path)}")
    if (path / "checkpoints").is_dir() or (path / "optimizer.safetensors").exists():
        raise PackedModelError(f"{path}: is a checkpoint, not a packed model; run yocobit pack")
    for name in (CONFIG, MODEL):
        if not (path / name).exists():
            raise PackedModelError(
                f"{path}: holds no {name}; name the directory of a packed model{_hint(path)}"
            )


def _hint(path: Path) -> str:
    """Return where a packed model comes from, if `path` looks like another kind of model."""
    if path.suffix == ".gguf" or (path.is_dir() and any(path.glob("*.gguf"))):
        return "; yocobit pull converts a GGUF file"
    if (path / CONFIG).exists():
        return ", as yocobit pack or yocobit import writes it"
    if not path.exists() and re.fullmatch(r"([\w.-]+/)?[\w.-]+", str(path)):
        return "; yocobit pull ORG/NAME downloads a model of the Hugging Face Hub"
    return ""


def _check_metadata(header: dict[str, Any], file: Path) -> dict[str, str]:
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise PackedModelError(
            f"{file}: is not a packed model; run yocobit pack on a checkpoint, or yocobit import "
            "on a published one"
        )
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise PackedModelError(
            f"{file}: format_version must be {FORMAT_VERSION!r} but is {shown(version)}; "
            "pack the checkpoint again with this yocobit"
        )
    for name, value in metadata.items():
        if not isinstance(value, str):
            raise PackedModelError(
                f"{file}: metadata {shown(name)} must be a string but is {shown(value)}"
            )
    if metadata.get("header_sha256") != (actual := header_sha256(header)):
        raise PackedModelError(
            f"{file}: header must have sha256 {shown(metadata.get('header_sha256'))} but has "
            f"'{actual}'; {_REMEDY}"
        )
    return metadata


def _check_config(path: Path, metadata: dict[str, str]) -> None:
    actual = hashlib.sha256(read_bytes(path / CONFIG)).hexdigest()
    if metadata.get("config_sha256") != actual:
        raise PackedModelError(
            f"{path / CONFIG}: must have sha256 {shown(metadata.get('config_sha256'))}, as "
            f"{MODEL} records, but has '{actual}'; undo the edit or pack the checkpoint again"
        )


def _parameters(
    header: dict[str, Any], metadata: Mapping[str, str], config: ModelConfig, file: Path
) -> dict[str, StoredParameter]:
    """Return the parameters that the configuration implies, with the formats of the file."""
    entries = {name: entry for name, entry in header.items() if isinstance(entry, dict)}
    dtypes = {name: str(entry.get("dtype")) for name, entry in entries.items()}
    try:
        return parameters_by_dtype(config, dtypes, _formats(metadata))
    except ConfigError as error:
        raise PackedModelError(f"{file}: {error}; {_REMEDY}") from None


def _formats(metadata: Mapping[str, str]) -> dict[str, WeightFormat]:
    """Return the formats that the metadata records: those that dtypes do not imply."""
    recorded = parse_json(metadata.get(FORMATS_KEY, "{}"), "formats", dict[str, str])
    for name, format in recorded.items():
        if format not in FORMATS:
            raise ConfigError(
                f"format of {shown(name)} must be one of {', '.join(FORMATS)} but is "
                f"{shown(format)}"
            )
    return {name: FORMATS[format] for name, format in recorded.items()}


def _tensors(
    header: dict[str, Any], parameters: Mapping[str, StoredParameter], file: Path, data_begin: int
) -> dict[str, TensorInfo]:
    """Return the tensors in model order; each must have the expected dtype, shape and size."""
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    expected = tensors_of(parameters)
    for name in entries:
        if name not in expected:
            raise PackedModelError(f"{file}: tensor {shown(name)} must not be there; {_REMEDY}")
    tensors = {}
    for name, spec in expected.items():
        dtype, shape = spec
        if name not in entries:
            raise PackedModelError(f"{file}: tensor '{name}' is missing; {_REMEDY}")
        entry = entries[name]
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise PackedModelError(
                f"{file}: tensor '{name}' must have dtype, shape and data_offsets but is "
                f"{shown(entry)}"
            )
        if entry["dtype"] != dtype or not _is_list(entry["shape"], shape):
            raise PackedModelError(
                f"{file}: tensor '{name}' must be {dtype} {list(shape)} but is "
                f"{shown(entry['dtype'])} {shown(entry['shape'])}; {_REMEDY}"
            )
        size = spec.size_bytes
        begin = entry["data_offsets"][0] if _is_pair(entry["data_offsets"]) else 0
        if not _is_list(entry["data_offsets"], (begin, begin + size)):
            raise PackedModelError(
                f"{file}: tensor '{name}' must have two data_offsets, {size} apart, but has "
                f"{shown(entry['data_offsets'])}; {_REMEDY}"
            )
        tensors[name] = TensorInfo(dtype, shape, data_begin + begin, data_begin + begin + size)
    return tensors


def _is_pair(value: Any) -> bool:
    """Whether a JSON value is a list of two items, the first a valid offset."""
    is_pair = isinstance(value, list) and len(value) == 2 and type(value[0]) is int
    return is_pair and 0 <= value[0] < 1 << 62


def _is_list(value: Any, items: tuple[int, ...]) -> bool:
    """Whether a JSON value is the list of these integers; true and 1.0 are not 1."""
    return isinstance(value, list) and repr(value) == repr(list(items))


def _check_offsets(tensors: dict[str, TensorInfo], file: Path, data_begin: int) -> None:
    """Check that the tensors cover the data without gap or overlap, and their alignment."""
    position = data_begin
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].begin):
        if tensor.begin != position:
            raise PackedModelError(
                f"{file}: tensor '{name}' must start at byte {position}, where the previous "
                f"tensor ends, but starts at {tensor.begin}; {_REMEDY}"
            )
        size = tensor.end - tensor.begin
        alignment = ALIGNMENT if size % ALIGNMENT == 0 else SMALLEST_ALIGNMENT
        if tensor.begin % alignment:
            raise PackedModelError(
                f"{file}: tensor '{name}' must start at a multiple of {alignment} but starts at "
                f"byte {tensor.begin}; pack the checkpoint again"
            )
        position = tensor.end
    if (size := file.stat().st_size) != position:
        fault = "is truncated" if size < position else "has appended bytes"
        raise PackedModelError(
            f"{file}: {fault}: must have {position} bytes but has {size}; {_REMEDY}"
        )


def _check_floats(
    stream: BinaryIO,
    parameters: Mapping[str, StoredParameter],
    tensors: Mapping[str, TensorInfo],
    file: Path,
) -> None:
    """Check the small tensors: norms, decays and scales are finite, scales also positive."""
    for parameter, stored in parameters.items():
        scale, name = stored.format.scale, parameter
        rule = "finite"
        if scale is not None:
            name = scale_name(parameter)
            rule += " and not negative" if isinstance(scale, PerGroup) else " and positive"
        elif stored.role not in ("norm", "bias", "float"):
            continue
        tensor = tensors[name]
        stream.seek(tensor.begin)
        values = np.frombuffer(stream.read(tensor.end - tensor.begin), DTYPES[tensor.dtype])
        valid = np.isfinite(values)
        if scale is not None:
            valid &= ~np.signbit(values) if isinstance(scale, PerGroup) else values > 0
        if not valid.all():
            raise PackedModelError(
                f"{file}: tensor '{name}' must be {rule} but holds {values[~valid][0]}; {_REMEDY}"
            )
