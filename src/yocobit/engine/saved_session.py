"""Sessions as files: saved state that another process or machine can resume from.

A saved session is a safetensors file of three tensors and metadata, validated before use and never
unpickled. It belongs to one model. CPU, capacity and thread count may differ, as results have the
same bits on all of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from yocobit.disk import replacing
from yocobit.engine.session import CacheType
from yocobit.errors import ConfigError, UserError, printable, shown
from yocobit.packing.reader import EXACT_SUFFIX
from yocobit.packing.safetensors_header import entries_of
from yocobit.reading import boundary, open_regular

FORMAT, VERSION = "yocobit-session", "1"
_DTYPES = {"tokens": np.int32, "state": np.uint8, "positions": np.uint8}
_NAMES = {"tokens": "I32", "state": "U8", "positions": "U8"}  # of dtypes in safetensors
_REMEDY = "feed its text to a new session"


class SavedSessionError(UserError):
    """A session cannot be saved or restored; the message names the file and the violated rule."""


@dataclasses.dataclass(frozen=True)
class SavedSession:
    """The content of a session file."""

    model: str  # PackedModel.identity
    cache: CacheType
    tokens: NDArray[np.int32]  # (T,) consumed
    state: NDArray[np.uint8]  # recurrent states and sliding-window caches after the last token
    positions: NDArray[np.uint8]  # of the growing KV caches

    def write(self, path: Path) -> None:
        """Write the file atomically; SavedSessionError if it cannot be written."""
        tensors = {name: getattr(self, name) for name in _DTYPES}
        metadata = {
            "format": FORMAT,
            "format_version": VERSION,
            "model": self.model,
            "cache": self.cache,
            "sha256": _hash(tensors),
        }
        try:
            with replacing(path) as partial:
                partial.write_bytes(save(tensors, metadata))
        except OSError as error:
            raise SavedSessionError(f"{path}: cannot be written ({error.strerror})") from None

    @classmethod
    def read(cls, path: Path, model: str) -> SavedSession:
        """Read a file; SavedSessionError unless it is intact and belongs to the model."""
        try:
            tensors, metadata = _read(path, model)
        except FileNotFoundError:
            raise SavedSessionError(f"{path}: no such file") from None
        except (OSError, ConfigError) as error:
            raise SavedSessionError(
                f"{path}: is not a saved session ({error}); {_REMEDY}"
            ) from None
        if metadata.get("sha256") != _hash(tensors):
            raise SavedSessionError(f"{path}: its bytes do not match their hash; {_REMEDY}")
        cache: CacheType = metadata["cache"]
        return cls(model, cache, tensors["tokens"], tensors["state"], tensors["positions"])


def _read(path: Path, model: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the tensors and the metadata of a file, checked except for the hash."""
    with boundary(path, "is not a saved session", SavedSessionError), open_regular(path) as stream:
        entries, metadata = entries_of(stream, path, {"I32": 4, "U8": 1})
        _check(path, metadata, model)
        tensors = {}
        for name, dtype in _DTYPES.items():
            entry, expected = entries.get(name), np.dtype(dtype)
            if entry is None or len(entry.shape) != 1 or entry.dtype != _NAMES[name]:
                actual = f"{entry.dtype} of shape {entry.shape}" if entry else "missing"
                raise SavedSessionError(
                    f"{path}: {name} must be a list of {expected} but is {printable(actual, 200)}; "
                    f"{_REMEDY}"
                )
            stream.seek(entry.begin)
            data = stream.read(entry.end - entry.begin)
            tensors[name] = np.frombuffer(data, expected)
    return tensors, metadata


def _check(path: Path, metadata: dict[str, Any], model: str) -> None:
    if metadata.get("format") != FORMAT:
        raise SavedSessionError(f"{path}: is not a saved session; {_REMEDY}")
    if (version := metadata.get("format_version")) != VERSION:
        raise SavedSessionError(
            f"{path}: format_version must be {VERSION!r} but is {shown(version)}; {_REMEDY}"
        )
    if (saved := str(metadata.get("model"))) != model:
        if saved.removesuffix(EXACT_SUFFIX) == model.removesuffix(EXACT_SUFFIX):
            bits, ours = ("int16", "int8") if saved.endswith(EXACT_SUFFIX) else ("int8", "int16")
            raise SavedSessionError(
                f"{path}: was made with {bits} activations but this engine has {ours}; load the "
                f"model with exact={bits == 'int16'}"
            )
        raise SavedSessionError(
            f"{path}: was made by the model {printable(saved[:12])} but this is {model[:12]}; "
            "load that one"
        )
    if metadata.get("cache") not in get_args(CacheType):
        raise SavedSessionError(
            f"{path}: has a cache of type {shown(metadata.get('cache'))}; {_REMEDY}"
        )


def _hash(tensors: dict[str, NDArray[np.generic]]) -> str:
    whole = hashlib.sha256()
    for name in _DTYPES:
        whole.update(np.ascontiguousarray(tensors[name]).data)
    return whole.hexdigest()
