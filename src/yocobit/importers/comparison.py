"""Comparison of a packed model with another source of the same model: codes and scales.

Sources of one model differ: packed ternary safetensors have bfloat16 scales, I2_S files float32
ones, and codes from master weights differ from published ones (docs/getting-started).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from yocobit.errors import ConfigError
from yocobit.importers.checkpoint import Checkpoint
from yocobit.importers.convert import stored_tensors
from yocobit.mixers import model_parameters
from yocobit.packing.format import DTYPES, scale_name
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

    Float weights of the source are rounded to the model's formats first. ConfigError if the two
    have different shapes or parameters.
    """
    _check_same_model(model, source)
    result = Comparison()
    codes = None
    for name, values in stored_tensors(source, model.parameters):
        own = _read(model, name)
        parameter = model.parameters[name.removesuffix(_SCALE)]
        if not parameter.format.is_integer or parameter.format.quantize is not None:
            if not np.array_equal(own, values):
                result.different_tensors.append(name)
        elif name.endswith(_SCALE):
            assert codes is not None  # of the tensor before
            _compare_scales(result, parameter, codes, own, values)
        else:
            _compare_codes(result, name, parameter, own, values)
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
    """Compare scales, except those of rows or groups of zeros, whose value has no effect."""
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    errors = np.abs(ours - theirs) / np.maximum(np.abs(theirs), np.finfo(np.float32).tiny)
    if errors.any():
        errors *= _has_weights(stored, codes)
    result.n_scales_different += int(np.count_nonzero(errors))
    result.largest_scale_error = max(result.largest_scale_error, float(errors.max()))


def _has_weights(stored: StoredParameter, codes: Array) -> Array:
    """Return for each stored scale whether one of its weights is not 0."""
    M, K = stored.shape
    granularity = stored.format.scale
    is_used: Array = stored.format.decode(codes, M, K) != 0
    if isinstance(granularity, PerTensor):
        return np.array([is_used.any()])
    if not isinstance(granularity, PerGroup):
        rows: Array = np.logical_or.reduce(is_used, axis=1)
        return rows
    padded = np.pad(is_used, ((0, 0), (0, -K % granularity.columns)))
    groups: Array = np.logical_or.reduce(padded.reshape(M, -1, granularity.columns), axis=2)
    return granularity.encode(groups)


def _read(model: PackedModel, name: str) -> Array:
    tensor = model.tensors[name]
    dtype = np.dtype(DTYPES[tensor.dtype])
    count = (tensor.end - tensor.begin) // dtype.itemsize
    return np.fromfile(model.file, dtype, count, offset=tensor.begin).reshape(tensor.shape)
