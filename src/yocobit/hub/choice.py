"""Choice of the files of a repository that make one model: the most exact, then the smallest.

Published models come as I2_S GGUF files with float32 scales, as packed safetensors with bfloat16
scales, as GGUF files and MLX directories of 1 or 2 bits with float16 scales, as floats, which may
be fake-quantised, as master weights, whose quantisation gives other codes than the published ones,
and as files quantised without training.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from yocobit.errors import ConfigError
from yocobit.importers.huggingface import sentencepiece
from yocobit.importers.huggingface.reader import POOLING
from yocobit.packing.file_format import CHAT_TEMPLATE, CONFIG, GENERATION, INDEX, MODEL, TOKENIZER

# The files of a Hugging Face directory that the importers read besides the weights.
TEXT_FILES = (
    CONFIG,
    GENERATION,
    TOKENIZER,
    sentencepiece.FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    CHAT_TEMPLATE,
    POOLING,
)
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_MASTERS = "master weights, whose codes may differ from the published ones"

# GGUF types as in file names. These hold published codes with float16 scales, the same in all files
# of a model; the fewest bits per weight first.
_CODE_TYPES = ("q1_0", "stq1_0", "tq1_0", "ptq1_0", "q2_0c", "tq2_0", "pq2_0", "q2_0")
_FLOAT_TYPES = ("f32", "bf16", "f16")  # the most exact first
_ROUNDED_TYPES = ("q8_0", "q6_k", "q5_k", "q4_k", "q4_1", "q4_0")
# llama.cpp also rounds models that were trained without quantisation to these types. Files of them
# next to larger types are taken for such ones.
_ALSO_ROUNDED = ("q2_0", "q1_0")
_ORDER = (
    *("i2_s", "packed"),
    *_CODE_TYPES,
    *("mlx", "safetensors"),
    *_FLOAT_TYPES,
    "masters",
    *_ROUNDED_TYPES,
    "rounded mlx",
)
_SIDECAR = re.compile("mmproj|imatrix|dspark|dflash", re.IGNORECASE)  # not a language model
_CODES = "published codes with float16 scales"
_REASONS = {
    "i2_s": "published codes with float32 scales",
    "packed": "published codes",
    **dict.fromkeys(_CODE_TYPES, _CODES),
    "mlx": "published codes",
    "safetensors": "the weights in the published precision",
    "masters": _MASTERS,
    "rounded mlx": "weights rounded by MLX",
}


@dataclass(frozen=True)
class Choice:
    """Files of one model: one GGUF file, or a Hugging Face directory."""

    files: tuple[str, ...]
    gguf: str | None  # the only file, or None
    reason: str  # for the user: "NAME (why)"


def choose(
    names: Collection[str], config: Mapping[str, Any] | None, file: str | None, repository: str
) -> Choice:
    """Return the files to import from a repository with the files `names`.

    `config` is the content of its config.json, if it has one. `file` is the user's choice: a GGUF
    file, a safetensors file, or None. ConfigError if there is nothing to import.
    """
    if file is not None:
        if file not in names:
            offered = ", ".join(sorted(n for n in names if _is_weights(n))[:20]) or "no weights"
            raise ConfigError(f"{repository}: has no file '{file}'; it has {offered}")
        if file.endswith(".gguf"):
            return Choice((file,), file, f"{file} (as named)")
        if file != MODEL:
            raise ConfigError(
                f"{repository}: FILE must be a GGUF file or {MODEL} but is '{file}'; name another"
            )
        return _directory(names, f"{file} (as named)")
    candidates: dict[str, str] = {}  # type -> file
    for name in sorted(names):
        is_model = name.endswith(".gguf") and not (_PART.search(name) or _SIDECAR.search(name))
        if is_model and (type := _type_of(name)):
            candidates.setdefault(type, name)
    if MODEL in names or INDEX in names:
        candidates[_kind_of_directory(config)] = MODEL
    order = list(_ORDER)
    if candidates.keys() & set(_ROUNDED_TYPES):
        order = [type for type in order if type not in _ALSO_ROUNDED] + list(_ALSO_ROUNDED)
    for type in order:
        if type not in candidates:
            continue
        name = candidates[type]
        others = f"; of {len(candidates)} kinds of files" if len(candidates) > 1 else ""
        reason = f"{name} ({_REASONS.get(type, f'{type} values')}{others})"
        if name == MODEL:
            return _directory(names, reason)
        return Choice((name,), name, reason)
    raise ConfigError(f"{repository}: {_nothing(names)}")


def _directory(names: Collection[str], reason: str) -> Choice:
    weights = (MODEL,) if MODEL in names else (INDEX, *sorted(filter(_SHARD.fullmatch, names)))
    return Choice((*(name for name in TEXT_FILES if name in names), *weights), None, reason)


def _kind_of_directory(config: Mapping[str, Any] | None) -> str:
    config = config or {}
    if isinstance(mlx := config.get("quantization"), dict):
        return "mlx" if mlx.get("bits") in (1, 2) else "rounded mlx"
    quantization = config.get("quantization_config")
    if not isinstance(quantization, dict):
        return "safetensors"
    is_online = quantization.get("quantization_mode") == "online"
    return "masters" if is_online else "packed"


def _type_of(name: str) -> str | None:
    lower = name.lower()
    for type in ("i2_s", *_CODE_TYPES, *_FLOAT_TYPES, *_ROUNDED_TYPES):
        if re.search(rf"(^|[^a-z0-9]){type}([^a-z0-9]|$)", lower):
            return type
    return None


def _is_weights(name: str) -> bool:
    return name.endswith((".gguf", ".safetensors"))


def _nothing(names: Collection[str]) -> str:
    """Describe what a repository has when none of it can be imported."""
    parts = [name for name in names if _PART.search(name)]
    if parts:
        return (
            f"has GGUF files in several parts, such as {min(parts)}; download and join them with "
            "llama-gguf-split --merge, or choose another repository"
        )
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    if ggufs:
        return (
            f"has GGUF files of unknown types, such as {ggufs[0]}; name one as ORG/NAME:FILE, "
            "or choose another repository"
        )
    pickles = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth")))
    if pickles:
        return (
            f"has pickled weights only, such as {pickles[0]}, which could run code; choose a "
            "repository with safetensors or GGUF files"
        )
    return "has neither safetensors nor GGUF files; choose another repository"
