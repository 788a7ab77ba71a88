"""MLX quantisation: `quantization` of a config.json, and matrices of 1, 2, 4 or 8 bits.

A matrix X is X.weight, codes in uint32 with the first column in the lowest bits, and X.scales and
X.biases per group of columns: weight = code * scale + bias. Ternary matrices of Maple have
X.row_alpha, one scale per row, instead: weight = (code - 1) * scale. Layout and names are those of
mlx (mode "affine"), of mlx-lm, and of PrismML's and Deepgrove's forks.

Letters: M output features   K input features   G groups in a row
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from yocobit.errors import ConfigError
from yocobit.importers.checkpoint import IntegerMatrix
from yocobit.importers.gguf.blocks import has_code_3
from yocobit.importers.group_scales import TRITS, fold
from yocobit.importers.huggingface.names import TensorPart
from yocobit.packing.layout import Array, Codes, Floats, Int8s
from yocobit.packing.tensor_source import SafetensorsDirectory
from yocobit.settings import Settings

SCALES, BIASES, ROW_SCALE = "scales", "biases", "row_alpha"
_MATRIX, _VECTOR = 2, 1  # axes of a tensor of one matrix
# The integers of the codes, by the ratio of bias to scale. Trits have the first form of 2 bits.
_FORMS: Mapping[int, Mapping[float, tuple[int, ...]]] = {
    1: {-0.5: (-1, 1)},
    2: {-1.0: (*TRITS, 2), -1.5: (-3, -1, 1, 3)},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Affine(Settings):
    """The quantisation of a matrix."""

    bits: Literal[1, 2, 4, 8]
    group_size: Literal[32, 64, 128] = 64
    mode: Literal["affine"] = "affine"

    @property
    def is_low_bit(self) -> bool:
        """Whether weights are integers times a scale; otherwise they are read as floats."""
        return self.bits in _FORMS


@dataclasses.dataclass(frozen=True)
class MLXQuantization:
    """`quantization` of a config.json: a default, and exceptions by module."""

    default: Affine
    by_module: Mapping[str, Affine]

    @classmethod
    def of(cls, fields: Mapping[str, Any], subject: str) -> MLXQuantization:
        """Read the fields; ConfigError names `subject` and the invalid key."""
        known = [field.name for field in dataclasses.fields(Affine)]
        own = {name: value for name, value in fields.items() if name in known}
        by_module = {}
        for name, value in fields.items():
            if isinstance(value, dict) and name not in known:
                by_module[name] = Affine.from_dict({**own, **value}, f"{subject}.{name}")
            elif name not in known and not isinstance(value, bool):  # true: the default
                names = ", ".join(known)
                raise ConfigError(f"{subject}: unknown key '{name}'; known keys: {names}")
        return cls(Affine.from_dict(own, subject), by_module)

    def of_module(self, module: str, stored: Collection[str]) -> Affine | None:
        """Return the quantisation of a module; None if `stored` has no scales of it."""
        if f"{module}.{SCALES}" not in stored and f"{module}.{ROW_SCALE}" not in stored:
            return None
        return self.by_module.get(module, self.default)


class AffineRows(NamedTuple):
    """Rows of a matrix as they are stored: weight = code * scale + bias."""

    module: str
    packed: Codes  # (M, K * bits / 8), the first column in the lowest bits
    scales: Floats  # (M, G), or (M, 1): one per row
    biases: Floats  # likewise

    def floats(self, bits: int) -> Floats:
        """Return the weights (M, K), which may be infinite."""
        M, G = self.scales.shape
        codes = _decoded(self.packed, np.arange(1 << bits, dtype=np.uint8), bits)
        groups = codes.reshape(M, G, -1).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            return (groups * self.scales[..., None] + self.biases[..., None]).reshape(M, -1)


@dataclasses.dataclass(frozen=True)
class IntegerForm:
    """The weights of a matrix as integers times scales, without the codes."""

    values: tuple[int, ...]  # of codes
    bits: int
    scale: Floats  # as in IntegerMatrix
    # (M, G): factors of the integers, -1 for a negative scale. 0 for a scale of 0, with which any
    # codes stand for zeros, if `values` has 0.
    signs: Int8s

    def matrix(self, parts: Iterable[AffineRows]) -> IntegerMatrix:
        """Return the integers and scales of the rows that integer_form received."""
        values = np.array(self.values, dtype=np.int8)
        integers = np.concatenate([_decoded(rows.packed, values, self.bits) for rows in parts])
        if (self.signs != 1).any():
            M, G = self.signs.shape
            integers = (integers.reshape(M, G, -1) * self.signs[..., None]).reshape(M, -1)
        return IntegerMatrix(integers, self.scale)


def integer_form(parts: Sequence[AffineRows], affine: Affine, K: int, path: Path) -> IntegerForm:
    """Return the integer form of a matrix of 1 or 2 bits; `parts` are its rows.

    ConfigError names the tensor unless the bias of each group is -1 scale (trits, and code 3 is 2),
    -1.5 scales (-3, -1, 1, 3) or, of 1 bit, -0.5 scales (-1, 1).
    """
    values = _values(parts[0], affine.bits, path)
    for rows in parts[1:]:
        if _values(rows, affine.bits, path) != values:
            raise ConfigError(
                f"{path}: tensor '{rows.module}.{BIASES}' must be the same multiple of the "
                f"{SCALES} as that of '{parts[0].module}' but differs"
            )
    if 2 in values and not any(has_code_3(rows.packed) for rows in parts):
        values = TRITS
    scales = np.concatenate([rows.scales for rows in parts]) / np.float32(values[1] - values[0])
    is_negated = scales < 0
    if is_negated.any() and values[0] != -values[-1]:
        raise ConfigError(
            f"{path}: tensor '{parts[0].module}.{SCALES}' must not be negative, as code 3 occurs, "
            f"but has {scales[is_negated][0]:g}; choose another checkpoint of the model"
        )
    columns = K if scales.shape[1] == 1 else affine.group_size
    signs = np.where(is_negated, np.int8(-1), np.int8(1))
    if 0 in values:
        signs[scales == 0] = 0
    return IntegerForm(values, affine.bits, fold(np.abs(scales), columns, values), signs)


def read_rows(
    tensors: SafetensorsDirectory, part: TensorPart, shape: tuple[int, int], affine: Affine
) -> AffineRows:
    """Read rows (M, K) of a matrix; ConfigError names a tensor of another shape or dtype."""
    M, K = shape
    if K % affine.group_size or K * affine.bits % 32:
        raise ConfigError(
            f"{tensors.path}: columns of '{part.module}.weight' must be a multiple of group_size = "
            f"{affine.group_size} and fill words of 32 bits but are {K}"
        )

    def read(kind: str, dtypes: str, width: int | None) -> Array:
        name = f"{part.module}.{kind}"
        values = part.take(tensors.read(name), _VECTOR if width is None else _MATRIX)
        expected = (M,) if width is None else (M, width)
        if values.shape != expected or values.dtype.kind not in dtypes:
            wanted = "uint32" if dtypes == "u" else "floats"
            raise ConfigError(
                f"{tensors.path}: tensor '{name}' must be {wanted} of shape {list(expected)} but "
                f"is {values.dtype} of {list(values.shape)}"
            )
        return values

    def read_floats(kind: str, width: int | None) -> Floats:
        floats = read(kind, "f", width).astype(np.float32)
        if not np.isfinite(floats).all():
            name = f"{part.module}.{kind}"
            raise ConfigError(f"{tensors.path}: tensor '{name}' must be finite but is not")
        return floats

    packed = np.ascontiguousarray(read("weight", "u", K * affine.bits // 32), dtype="<u4")
    if f"{part.module}.{ROW_SCALE}" in tensors.names():
        scales = read_floats(ROW_SCALE, None)[:, None]
        return AffineRows(part.module, packed.view(np.uint8), scales, -scales)
    n_groups = K // affine.group_size
    scales, biases = read_floats(SCALES, n_groups), read_floats(BIASES, n_groups)
    return AffineRows(part.module, packed.view(np.uint8), scales, biases)


def _values(rows: AffineRows, bits: int, path: Path) -> tuple[int, ...]:
    """Return the integers of the codes."""
    scales, biases = rows.scales, rows.biases
    with np.errstate(over="ignore"):  # an infinite result equals no bias
        is_other = {ratio: biases != scales * np.float32(ratio) for ratio in _FORMS[bits]}
    for ratio, values in _FORMS[bits].items():
        if not is_other[ratio].any():
            return values
    first = is_other[min(is_other, key=lambda ratio: int(is_other[ratio].sum()))]
    ratios = " or ".join(f"{ratio:g}" for ratio in is_other)
    raise ConfigError(
        f"{path}: tensor '{rows.module}.{BIASES}' must be {ratios} times the {SCALES} in all "
        f"groups, so that weights are integers times a scale, but has {biases[first][0]:g} with a "
        f"scale of {scales[first][0]:g}; choose a checkpoint that was trained in {bits} bits"
    )


def _decoded(packed: Codes, values: Array, bits: int) -> Array:
    """Return the values (M, K) of packed codes."""
    codes = np.arange(256)[:, None] >> np.arange(0, 8, bits) & ((1 << bits) - 1)
    table = values[np.minimum(codes, len(values) - 1)]  # (256, codes of a byte)
    decoded: Array = table[packed].reshape(len(packed), -1)
    return decoded
