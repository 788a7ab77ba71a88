"""GGUFCheckpoint: a GGUF file as a Checkpoint.

Integers and scales of matrices are kept as published; all other weights become float32.

Letters: M output features   K input features
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np

from yocobit.config import WeightKind
from yocobit.errors import shown
from yocobit.importers.checkpoint import IntegerMatrix
from yocobit.importers.gguf.architectures import (
    NO_SINK,
    ROPE_FACTORS,
    SINKS,
    architecture_of,
    tensor_name,
    tensor_shape,
)
from yocobit.importers.gguf.configuration import read_config
from yocobit.importers.gguf.container import GGUFFile, TensorInfo
from yocobit.importers.gguf.scaled_matrix import format_of, read_matrix
from yocobit.importers.gguf.tensor_types import (
    identify,
    read_floats,
    read_integers,
    read_scales,
)
from yocobit.importers.gguf.text import read_text, read_text_with
from yocobit.importers.group_scales import TRITS, fold
from yocobit.importers.row_order import in_halves
from yocobit.mixers import model_parameters
from yocobit.packing.formats import F16, F32, TABLES, WeightFormat, formats_of
from yocobit.packing.layout import Array, Floats, Int8s
from yocobit.packing.text_files import TextFiles

ACTIVATIONS, INT8_PER_TOKEN = "yocobit.activations", "int8_per_token"  # written by our export
_MASTERS = ("F32", "F16", "BF16")
_SCALED = ("projection", "head")  # roles of matrices that may have a tensor NAME.scale
# RoPE frequencies, which converters of 2023 wrote; the configuration implies them.
_OLD_ROPE = re.compile(r"blk\.\d+\.attn_rot_embd")


class GGUFCheckpoint:
    """The model in a GGUF file."""

    def __init__(self, path: Path) -> None:
        """Read the header; ConfigError for an unsupported architecture, key, tensor or type."""
        self.path = path
        self._file = GGUFFile(path)
        self._architecture = architecture_of(self._file.metadata, path)
        self._types = {
            name: identify(self._file, tensor) for name, tensor in self._file.tensors.items()
        }
        self._is_a8 = self._has_quantised_activations()
        config, self.warnings = read_config(self._file, self._architecture)
        self._parameters = model_parameters(config)
        self._check_names()
        # The formats of the matrices of weights-only quantisation (A16).
        self._a16 = {} if self._is_a8 else self._formats_a16()
        self.config = config.replace(weights=self._weights())
        self.formats = self._formats()

    @property
    def source_type(self) -> str:
        """The types of the projections, the most frequent first."""
        return f"GGUF {', '.join(self._projection_types())}"

    def read(self, name: str, shape: tuple[int, ...]) -> Floats | IntegerMatrix:
        tensor = self._tensor(name)
        stored = tensor_shape(name, shape, self.config.n_experts)
        if tensor.shape != stored:
            raise self._file.error(
                f"tensor '{tensor.name}' must have the shape {list(stored)} but has "
                f"{list(tensor.shape)}"
            )
        factor = self._factor(tensor.name)
        if name in self._a16:
            kind = self._types[tensor.name]
            matrix = read_matrix(self._file, tensor, kind, self._a16[name])
            scale = matrix.scale * factor
            return IntegerMatrix(self._permuted(name, matrix.integers), self._permuted(name, scale))
        if not self._has_trits(name):
            floats = self._floats(tensor).reshape(shape)
            return self._permuted(name, floats if factor == 1 else floats * factor)
        values = self._matrix(tensor, factor)
        if not isinstance(values, IntegerMatrix):
            return self._permuted(name, values)
        integers, scale = values
        of_rows = scale.size > 1
        return IntegerMatrix(
            self._permuted(name, integers), self._permuted(name, scale) if of_rows else scale
        )

    def text_files(self, tokenizer: Path | None = None) -> TextFiles:
        if tokenizer is not None:
            return read_text_with(self._file.metadata, self.path, self.config.vocab_size, tokenizer)
        files, warnings = read_text(self._file.metadata, self.path, self.config.vocab_size)
        self.warnings += warnings
        return files

    def _tensor(self, name: str) -> TensorInfo:
        """Return the tensor of a parameter."""
        return self._file.tensors[tensor_name(name, self._architecture.has_experts)]

    def _has_quantised_activations(self) -> bool:
        """Whether the model was trained with ternary weights and int8 activations (A8).

        I2_S files are: no tool writes other models in this type. Files of other types are if they
        have our key or an architecture of such models.
        """
        activations = self._file.metadata.get(ACTIVATIONS)
        if activations not in (None, INT8_PER_TOKEN):
            raise self._file.error(
                f"{ACTIVATIONS} must be {INT8_PER_TOKEN} but is {shown(activations)}"
            )
        is_i2_s = any(kind.name == "I2_S" for kind in self._types.values())
        return self._architecture.is_ternary or is_i2_s or activations == INT8_PER_TOKEN

    def _formats_a16(self) -> dict[str, WeightFormat]:
        """Return the formats of matrices and tables with codes; reads their scales and codes."""
        formats = {}
        for name, parameter in self._parameters.items():
            tensor = self._tensor(name)
            kind = self._types[tensor.name]
            if kind.codes is not None and parameter.role in ("projection", *TABLES):
                formats[name] = format_of(self._file, tensor, kind)
        return formats

    def _weights(self) -> WeightKind:
        """Return the most frequent format of projections; "dense" if all have floats."""
        if self._is_a8:
            return "ternary_row" if self._has_scales_of_rows() else "ternary"
        formats = [
            format
            for name, format in self._a16.items()
            if self._parameters[name].role == "projection"
        ]
        if not formats:
            return "dense"
        weights = Counter(formats).most_common(1)[0][0].weights
        assert weights is not None
        return weights

    def _has_scales_of_rows(self) -> bool:
        """Whether the trits of a projection have several scales; 0 is that of a block of zeros."""
        for name, parameter in self._parameters.items():
            tensor = self._tensor(name)
            kind = self._types[tensor.name]
            if parameter.role == "projection" and kind.codes is not None:
                scales = read_scales(self._file, tensor, kind)
                if np.unique(scales[scales != 0]).size > 1:
                    return True
        return False

    def _projection_types(self) -> list[str]:
        """Return the types of the projections, the most frequent first."""
        names = [
            self._types[self._tensor(name).name].name
            for name, parameter in self._parameters.items()
            if parameter.role == "projection"
        ]
        return [name for name, _ in Counter(names).most_common()]

    def _check_names(self) -> None:
        """Raise ConfigError for a missing tensor, and for one that is not part of the model."""
        has_experts = self._architecture.has_experts
        needed = {
            tensor_name(name, has_experts): each.role for name, each in self._parameters.items()
        }
        found = self._file.tensors
        if missing := [name for name in needed if name not in found]:
            raise self._file.error(f"tensor '{missing[0]}' is missing; download the file again")
        scales = (_scale_name(name) for name, role in needed.items() if role in _SCALED)
        known = {*needed, *scales, *ROPE_FACTORS}
        for name in found:
            if not (name in known or _OLD_ROPE.match(name) or self._is_without_effect(name)):
                raise self._file.error(
                    f"tensor {shown(name)} is not part of a {self._architecture.name} model that "
                    "is supported, and would change what the model computes; choose another model"
                )

    def _is_without_effect(self, name: str) -> bool:
        """Whether a tensor has sinks of attention that add nothing."""
        if not (self._architecture.has_sinks and name.endswith(f".{SINKS}")):
            return False
        tensor = self._file.tensors[name]
        return bool((self._floats(tensor) <= np.float32(NO_SINK)).all())

    def _formats(self) -> dict[str, WeightFormat]:
        """Return the formats of matrices that differ from those of the configuration.

        A float projection of a quantised model stays in floats.
        """
        formats: dict[str, WeightFormat] = {}
        is_dense = self.config.weights == "dense"
        for name, parameter in self._parameters.items():
            is_f16 = self._types[self._tensor(name).name].name == "F16"
            if name in self._a16:
                if self._a16[name].weights != self.config.weights or parameter.role in TABLES:
                    formats[name] = self._a16[name]
            elif self._has_trits(name):
                if parameter.role == "head":
                    formats[name] = formats_of(self.config.weights)[0]
            elif parameter.role == "projection" and not is_dense:
                formats[name] = F16 if is_f16 else F32
            elif parameter.role in ("projection", *TABLES) and is_dense and is_f16:
                formats[name] = F16
        return formats

    def _has_trits(self, name: str) -> bool:
        """Whether a parameter is read as trits: a matrix of a model with quantised activations.

        The converter of llama.cpp rounds the projections of the architecture "bitnet" to trits
        times a scale, whatever type they are written in.
        """
        role = self._parameters[name].role
        if not self._is_a8 or role not in ("projection", "head"):
            return False
        has_codes = self._types[self._tensor(name).name].codes is not None
        return has_codes or (role == "projection" and self._architecture.is_ternary)

    def _matrix(self, tensor: TensorInfo, factor: np.float32) -> Floats | IntegerMatrix:
        """Return trits with the scale of the matrix or its rows; floats for master weights."""
        kind = self._types[tensor.name]
        if kind.codes is not None:
            integers, scales = read_integers(self._file, tensor, kind)
            self._check_trits(tensor, integers)
            scale = self._scale(tensor, integers, scales)
        else:
            floats = self._floats(tensor)
            scale = np.abs(floats).max(keepdims=True).reshape(1)
            integers = np.sign(floats).astype(np.int8)
            if (integers * scale != floats).any():
                return self._masters(tensor, floats)
        if not (np.isfinite(scale) & (scale > 0)).all():
            lowest = scale.min()
            raise self._file.error(f"tensor '{tensor.name}' has the scale {lowest}, not above 0")
        return IntegerMatrix(integers, scale * factor)

    def _check_trits(self, tensor: TensorInfo, integers: Int8s) -> None:
        if -1 <= integers.min() <= integers.max() <= 1:
            return
        n_bad = int((np.abs(integers) > 1).sum())
        raise self._file.error(
            f"tensor '{tensor.name}' must have trits, as models with quantised activations have, "
            f"but {n_bad} ({n_bad / integers.size:.2%}) of its integers are others; choose another "
            "file of the model"
        )

    def _masters(self, tensor: TensorInfo, floats: Floats) -> Floats:
        kind = self._types[tensor.name].name
        if kind not in _MASTERS:
            raise self._file.error(
                f"tensor '{tensor.name}' must be trits times one scale but is of type {kind} with "
                "other values; choose a file in I2_S, TQ2_0 or F16"
            )
        warning = "projections are master weights; their trits may differ from published ones"
        if warning not in self.warnings:
            self.warnings.append(warning)
        return floats

    def _scale(self, tensor: TensorInfo, integers: Int8s, scales: Floats) -> Floats:
        """Return the scale of all trits, (1,), or those of rows, (M,), in a model that has these.

        Sets the trits of blocks with scale 0 to 0. A writer gives a block of zeros the scale 0, and
        the value of its trits is 0.
        """
        if scales.size == 1:
            return scales.reshape(1)
        blocks = integers.reshape(*scales.shape, -1)  # a view: (M, blocks, columns)
        blocks[scales == 0] = 0
        is_used = blocks.any(axis=2)
        used = scales[is_used]
        if used.size == 0:
            return np.ones(1, dtype=np.float32)
        if (used == used[0]).all():
            return used[:1]
        rows = fold(np.where(is_used, scales, np.float32(0)), self._types[tensor.name].block, TRITS)
        if rows.ndim > 1 or self.config.weights != "ternary_row":
            raise self._file.error(
                f"tensor '{tensor.name}' must have one scale, or one per row in all projections, "
                "as models with quantised activations have, but has scales from "
                f"{used.min():g} to {used.max():g}"
            )
        return rows

    def _factor(self, name: str) -> np.float32:
        """Return the factor of a matrix's output in the tensor NAME.scale; 1 without it."""
        scale = _scale_name(name)
        if scale not in self._file.tensors:
            return np.float32(1)
        values = self._floats(self._file.tensors[scale])
        if values.size != 1 or values.item() <= 0:
            raise self._file.error(
                f"tensor '{scale}' must be one number above 0 but is {shown(values, 80)}"
            )
        return np.float32(values.item())

    def _floats(self, tensor: TensorInfo) -> Floats:
        return read_floats(self._file, tensor, self._types[tensor.name])

    def _permuted(self, name: str, values: Array) -> Array:
        """Undo the row order of Q and K that suits interleaved RoPE."""
        part = name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
        if not self._architecture.permutes or part not in ("q_proj", "k_proj"):
            return values
        return in_halves(values, self.config.head_dim)


def _scale_name(name: str) -> str:
    """Return the name of the tensor that scales the output of a matrix."""
    return name.removesuffix("weight") + "scale"
