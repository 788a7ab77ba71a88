"""The matrices of a Hugging Face checkpoint: how each is stored, and how it is read.

A matrix is stored as BitNet's trits, their master weights, MLX codes, or floats, which may be
fake-quantised.

Letters: M output features   K input features
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np

from yocobit.config import ConfigError, ModelConfig
from yocobit.importers.checkpoint import IntegerMatrix
from yocobit.importers.group_scales import format_of, smallest_group
from yocobit.importers.huggingface import fake_quantization
from yocobit.importers.huggingface.floats import checked, read_floats
from yocobit.importers.huggingface.mlx import (
    BIASES,
    ROW_SCALE,
    SCALES,
    Affine,
    AffineRows,
    MLXQuantization,
    integer_form,
    read_rows,
)
from yocobit.importers.huggingface.names import Names, TensorPart
from yocobit.importers.huggingface.quantization import BitNetQuantization, read_trits
from yocobit.mixers import model_parameters
from yocobit.packing.file_format import scale_name
from yocobit.packing.formats import TABLES, WeightFormat
from yocobit.packing.layout import Array, Floats
from yocobit.packing.tensor_source import SafetensorsDirectory

_FAKE_QUANTISED = ("F16", "BF16", "F32")  # dtypes
_SAMPLE = 8  # rows
_PIECE_WEIGHTS = 1 << 22  # read at once

Quantization = BitNetQuantization | MLXQuantization | None


class Matrices:
    """The projections, embedding and head of one checkpoint, by the names of our parameters."""

    def __init__(
        self,
        tensors: SafetensorsDirectory,
        names: Names,
        config: ModelConfig,
        quantization: Quantization,
    ) -> None:
        self._tensors, self._parameters = tensors, model_parameters(config)
        self._parts = {
            name: names.parts(name, tensors.names(), config)
            for name, parameter in self._parameters.items()
            if parameter.role in ("projection", *TABLES)
        }
        self.projections = [n for n in self._parts if self._parameters[n].role == "projection"]
        self._quantization = quantization
        # The parameters that are ternary: packed, or stored as master weights.
        self.ternary = self._ternary()
        self._affine = self._affine_of_matrices()

    @cached_property
    def formats(self) -> Mapping[str, WeightFormat]:
        """The formats of matrices whose weights are integers with scales of their own.

        Reads MLX scales and codes, or all weights of a fake-quantised checkpoint.
        """
        if isinstance(self._quantization, MLXQuantization):
            low_bit = [name for name, affine in self._affine.items() if affine.is_low_bit]
            return {name: self._affine_format(name) for name in low_bit}
        return {} if self._quantization is not None else self._fake_quantised()

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def dtype(self, name: str) -> str:
        """Return the dtype of a matrix as in the file."""
        return self._tensors.dtype(self._weight(self._parts[name][0]))

    def scale_dtype(self, name: str) -> str | None:
        """Return the dtype of the MLX scales of a matrix; None without scales."""
        return self._tensors.dtype(self.tensors(name)[1]) if name in self._affine else None

    def tensors(self, name: str) -> list[str]:
        """Return the tensors that hold a matrix."""
        kinds = ["weight"]
        if name in self.ternary and not self._has_masters:
            kinds.append(scale_name("weight"))
        if name in self._affine:
            first = f"{self._parts[name][0].module}.{ROW_SCALE}"
            kinds += [ROW_SCALE] if first in self._tensors.names() else [SCALES, BIASES]
        return [f"{part.module}.{kind}" for part in self._parts[name] for kind in kinds]

    def read(self, name: str) -> Floats | IntegerMatrix:
        """Return a matrix (M, K); ConfigError names an invalid tensor."""
        parts, (M, K) = self._parts[name], self._parameters[name].shape
        first = self._weight(parts[0])
        if name in self.ternary and not self._has_masters:
            assert isinstance(self._quantization, BitNetQuantization)
            return read_trits(self._tensors, first, (M, K), self._quantization)
        if name in self._affine:
            affine, rows = self._affine[name], self._read_affine(name)
            if affine.is_low_bit:
                return integer_form(rows, affine, K, self._tensors.path).matrix(rows)
            values = np.concatenate([each.floats(affine.bits) for each in rows])
            return checked(self._tensors, first, values, (M, K))
        if name in self.formats:
            matrix = fake_quantization.recover(self._pieces(name))
            if matrix is None:
                raise ConfigError(f"{self._tensors.path}: was edited while it was read; try again")
            return matrix
        if len(parts) == 1 and not parts[0].rows:
            shape = self._tensors.shape(first)
            if len(shape) <= 2:
                return read_floats(self._tensors, first, (M, K))
        floats, end = np.empty((M, K), dtype=np.float32), 0
        for piece in self._pieces(name):
            start, end = end, end + len(piece)
            floats[start:end] = checked(self._tensors, first, piece, piece.shape)
        return floats

    @property
    def _has_masters(self) -> bool:
        quantization = self._quantization
        return isinstance(quantization, BitNetQuantization) and quantization.has_master_weights

    def _ternary(self) -> set[str]:
        quantization = self._quantization
        if not isinstance(quantization, BitNetQuantization):
            return set()
        return {
            name
            for name, parts in self._parts.items()
            if self._parameters[name].role != "embedding"
            and quantization.quantises(parts[0].module)
        }

    def _affine_of_matrices(self) -> dict[str, Affine]:
        """Return the MLX quantisation of the matrices that have one."""
        found: dict[str, Affine] = {}
        if not isinstance(self._quantization, MLXQuantization):
            return found
        for name, parts in self._parts.items():
            affines = {
                part.module: self._quantization.of_module(part.module, self._tensors.names())
                for part in parts
            }
            first = affines[parts[0].module]
            for module, affine in affines.items():
                if affine != first:
                    raise ConfigError(
                        f"{self._tensors.path}: quantization of '{module}' must be that of "
                        f"'{parts[0].module}' but differs"
                    )
            if first is not None:
                found[name] = first
        return found

    def _affine_format(self, name: str) -> WeightFormat:
        K, affine = self._parameters[name].shape[1], self._affine[name]
        form = integer_form(self._read_affine(name), affine, K, self._tensors.path)
        if (format := format_of(form.values, form.scale, K)) is None:
            raise ConfigError(
                f"{self._tensors.path}: tensor '{self._parts[name][0].module}.{SCALES}' must have "
                f"equal scales in groups of {smallest_group(form.values)} columns for the weights "
                f"{form.values} but has one per {affine.group_size}; choose another checkpoint of "
                "the model"
            )
        return format

    def _read_affine(self, name: str) -> list[AffineRows]:
        (M, K), parts = self._parameters[name].shape, self._parts[name]
        shape = M // len(parts), K
        return [read_rows(self._tensors, part, shape, self._affine[name]) for part in parts]

    def _fake_quantised(self) -> dict[str, WeightFormat]:
        """Return the formats of the matrices that are fake-quantised."""
        plausible = [name for name in self.projections if self._is_plausible(name)]
        if 2 * len(plausible) < len(self.projections):
            return {}  # a dense model: a matrix may have few values by chance
        tables = [name for name in self._parts if self._parameters[name].role in TABLES]
        formats = {}
        for name in plausible + [name for name in tables if self._is_plausible(name)]:
            matrix = fake_quantization.recover(self._pieces(name))
            if matrix is not None and (format := fake_quantization.format_of_matrix(matrix)):
                formats[name] = format
        return formats

    def _is_plausible(self, name: str) -> bool:
        """Whether some rows in the middle of a matrix are fake-quantised."""
        weight = self._weight(self._parts[name][0])
        shape = self._tensors.shape(weight)
        if self._tensors.dtype(weight) not in _FAKE_QUANTISED or len(shape) < 2:
            return False
        first = shape[0] // 2
        rows = self._tensors.read_rows(weight, first, first + (_SAMPLE if len(shape) == 2 else 1))
        sample = rows.reshape(-1, shape[-1])[:_SAMPLE]
        return sample.size > 0 and fake_quantization.is_plausible(sample)

    def _pieces(self, name: str) -> Iterator[Array]:
        """Yield the rows of a matrix of floats, in order, some at a time; checks their shape."""
        (M, K), parts = self._parameters[name].shape, self._parts[name]
        n_rows = M // len(parts)
        for part in parts:
            weight = self._weight(part)
            if self._tensors.shape(weight) == (n_rows, K):
                step = max(_PIECE_WEIGHTS // K, 1)
                for start in range(0, n_rows, step):
                    yield self._tensors.read_rows(weight, start, min(start + step, n_rows))
                continue
            rows = part.take(self._tensors.read(weight), 2)
            if rows.shape != (n_rows, K):
                shape = list(self._tensors.shape(weight))
                raise ConfigError(
                    f"{self._tensors.path}: tensor '{weight}' must have {n_rows} rows of {K} "
                    f"floats but has the shape {shape}"
                )
            yield rows

    @staticmethod
    def _weight(part: TensorPart) -> str:
        return f"{part.module}.weight"
