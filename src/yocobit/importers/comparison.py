"""Comparison of a packed model with another source of the same model: codes and scales.

Sources of one model differ: packed ternary safetensors have bfloat16 scales, I2_S files float32
ones, and codes from master weights differ from published ones (docs/getting-started).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from yocobit.errors import ConfigError
from yocobit.importers.checkpoint import Checkpoint, IntegerMatrix
from yocobit.importers.convert import stored_tensors
from yocobit.mixers import model_parameters
from yocobit.packing.file_format import DTYPES, scale_name
from yocobit.packing.layout import Array
from yocobit.packing.reader import PackedModel
from yocobit.packing.scales import PerGroup, PerTensor
from yocobit.packing.stored_parameters import StoredParameter

# Relative: bfloat16 rounds to 8 bits, so two roundings of one scale differ by at most this.
SCALE_TOLERANCE = 2.0**-8

_SCALE = scale_name("")


@dataclass
class Comparison:
    """The differences of two sources; matrices are those with integer weights."""

    n_matrices: int = 0
    n_weights: int = 0
    different_weights: dict[str, int] = field(default_factory=dict)  # by matrix
    largest_scale_error: float = 0.0  # relative
    n_scales_different: int = 0
    different_tensors: list[str] = field(default_factory=list)  # floats and rounded tables

    @property
    def is_equal(self) -> bool:
        """Whether all codes are equal, and scales up to the rounding to bfloat16."""
        return not self.different_weights and self.largest_scale_error <= SCALE_TOLERANCE

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "equal": self.is_equal,
            "weights": self.n_weights,
            "different_weights": self.different_weights,
            "different_scales": self.n_scales_different,
            "largest_scale_error": self.largest_scale_error,
            "different_tensors": self.different_tensors,
        }

    def describe(self) -> list[str]:
        """Return the result as lines for the user."""
        lines = []
        if self.different_weights:
            name = max(self.different_weights, key=self.different_weights.__getitem__)
            total = sum(self.different_weights.values())
            lines.append(
                f"codes   {total:,} of {self.n_weights:,} differ "
                f"({100 * total / self.n_weights:.2f} %), in {len(self.different_weights)} of "
                f"{self.n_matrices} matrices; most in {name}: {self.different_weights[name]:,}"
            )
        else:
            lines.append(f"codes   all {self.n_weights:,} of {self.n_matrices} matrices are equal")
        if self.n_scales_different:
            lines.append(
                f"scales  {self.n_scales_different:,} differ, by at most "
                f"{100 * self.largest_scale_error:.3f} %"
            )
        else:
            lines.append("scales  all are equal")
        if self.different_tensors:
            shown = ", ".join(self.different_tensors[:3])
            more = ", ..." if len(self.different_tensors) > 3 else ""
            lines.append(f"others  {len(self.different_tensors)} tensors differ: {shown}{more}")
        else:
            lines.append("others  all are equal")
        return lines


def compare(model: PackedModel, source: Checkpoint) -> Comparison:
    """Compare a packed model with a published checkpoint, one tensor at a time.

    Float weights of the source are rounded to the model's formats first. Matrices of weights-only
    quantisation are compared by values: each may have scales of other groups, and codes of another
    format. ConfigError if the two have different shapes or parameters.
    """
    _check_same_model(model, source)
    result = Comparison()
    for name, stored in model.parameters.items():
        theirs = _integers(source, name, stored)
        if theirs is not None:
            _compare_matrices(result, name, _own_integers(model, name, stored), theirs)
            continue
        codes = None
        for tensor, values in stored_tensors(source, {name: stored}):
            own = _read(model, tensor)
            if not stored.format.is_integer or stored.format.quantize is not None:
                if not np.array_equal(own, values):
                    result.different_tensors.append(tensor)
            elif tensor.endswith(_SCALE):
                assert codes is not None  # of the tensor before
                _compare_scales(result, stored, codes, own, values)
            else:
                _compare_codes(result, tensor, stored, own, values)
                codes = own
    return result


def _check_same_model(model: PackedModel, source: Checkpoint) -> None:
    """Raise ConfigError unless both have the same shapes and parameters.

    The head is excepted: a source with tied embeddings has none of its own.
    """
    ours, theirs = model.config.to_dict(), source.config.to_dict()
    for name in ("vocab_size", "d_model", "d_ff", "layers", "n_heads", "n_kv_heads", "head_size"):
        if ours.get(name) != theirs.get(name):
            raise ConfigError(
                f"{source.path}: {name} must be {ours.get(name)} as in {model.path} but is "
                f"{theirs.get(name)}; name a source of the same model"
            )
    names = model_parameters(model.config).keys()
    different = (names ^ model_parameters(source.config).keys()) - {"head.weight"}
    if different:
        name = min(different)
        raise ConfigError(
            f"{source.path}: must have the parameters of {model.path} but "
            f"{'lacks' if name in names else 'also has'} '{name}'; name a source of the same model"
        )


def _integers(source: Checkpoint, name: str, stored: StoredParameter) -> IntegerMatrix | None:
    """Return a matrix of weights-only quantisation as published; None for other parameters."""
    if stored.format.activations.group_columns is None:
        return None
    is_tied_head = source.config.tie_embeddings and name == "head.weight"
    values = source.read("embedding.weight" if is_tied_head else name, stored.shape)
    return values if isinstance(values, IntegerMatrix) else None


def _own_integers(model: PackedModel, name: str, stored: StoredParameter) -> IntegerMatrix:
    granularity, scales = stored.format.scale, _read(model, scale_name(name))
    if isinstance(granularity, PerGroup):
        scales = granularity.decode(scales, *stored.shape)
    return IntegerMatrix(stored.format.decode(_read(model, name), *stored.shape), scales)


def _compare_matrices(
    result: Comparison, name: str, ours: IntegerMatrix, theirs: IntegerMatrix
) -> None:
    """Compare integers, and scales except those of groups of zeros, whose value has no effect."""
    M, K = ours.integers.shape
    result.n_matrices += 1
    result.n_weights += M * K
    if n_different := int(np.count_nonzero(ours.integers != theirs.integers)):
        result.different_weights[name] = n_different
    columns = min(ours.group_columns, theirs.group_columns)
    own, other = ours.scales(columns), theirs.scales(columns)
    assert own is not None and other is not None
    padded = np.pad(ours.integers != 0, ((0, 0), (0, -K % columns)))
    is_used = np.logical_or.reduce(padded.reshape(M, -1, columns), axis=2)
    _add_scale_errors(result, own, other, is_used)


def _compare_codes(
    result: Comparison, name: str, stored: StoredParameter, ours: Array, theirs: Array
) -> None:
    result.n_matrices += 1
    result.n_weights += stored.shape[0] * stored.shape[1]
    if np.array_equal(ours, theirs):
        return
    decoded = (stored.format.decode(codes, *stored.shape) for codes in (ours, theirs))
    result.different_weights[name] = int(np.count_nonzero(np.not_equal(*decoded)))


def _compare_scales(
    result: Comparison, stored: StoredParameter, codes: Array, ours: Array, theirs: Array
) -> None:
    """Compare scales, except those of rows or matrices of zeros, whose value has no effect."""
    is_used: Array = stored.format.decode(codes, *stored.shape) != 0
    axes = None if isinstance(stored.format.scale, PerTensor) else 1
    _add_scale_errors(result, ours, theirs, np.logical_or.reduce(is_used, axis=axes))


def _add_scale_errors(result: Comparison, ours: Array, theirs: Array, is_used: Array) -> None:
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    errors = np.abs(ours - theirs) / np.maximum(np.abs(theirs), np.finfo(np.float32).tiny)
    errors *= is_used
    result.n_scales_different += int(np.count_nonzero(errors))
    result.largest_scale_error = max(result.largest_scale_error, float(errors.max()))


def _read(model: PackedModel, name: str) -> Array:
    tensor = model.tensors[name]
    dtype = np.dtype(DTYPES[tensor.dtype])
    count = (tensor.end - tensor.begin) // dtype.itemsize
    return np.fromfile(model.file, dtype, count, offset=tensor.begin).reshape(tensor.shape)
