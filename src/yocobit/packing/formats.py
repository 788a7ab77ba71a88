"""The closed table of weight formats and activation encodings: one record each.

Each matrix of a model may have its own format. Layout, expected tensors, verification, sizes,
random models, CLI choices and kernel dispatch read these records. native/ has the same table, and a
test compares the two.

Letters: M output features   K input features   N tokens
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from yocobit import _native
from yocobit.config import ConfigError, WeightKind
from yocobit.mixers import Role
from yocobit.packing import layout
from yocobit.packing.file_format import TensorSpec, scale_name
from yocobit.packing.layout import Array, Codes, Floats, Int8s
from yocobit.packing.scales import PerGroup, PerRow, PerTensor

TABLES: tuple[Role, Role] = ("embedding", "head")
_NO_CODE = 255  # packed formats have fewer codes


@dataclass(frozen=True)
class ActivationEncoding:
    """Quantisation of activations x (N, K) for a matmul: integers in [-largest, largest] with one
    scale per token, or per group of columns of a token.
    """

    name: str
    largest: int | None  # None: not quantised
    group_columns: int | None = None  # None: one scale per token


INT8_PER_TOKEN = ActivationEncoding("int8_per_token", largest=127)
INT16_PER_TOKEN = ActivationEncoding("int16_per_token", largest=_native.INT16_MAX)
# `largest` is INT16_MAX with ModelConfig.exact_activations.
INT8_PER_GROUP = ActivationEncoding(
    "int8_per_group", largest=127, group_columns=_native.ACTIVATION_GROUP
)
FLOAT32_ACTIVATIONS = ActivationEncoding("float32", largest=None)


@dataclass(frozen=True)
class WeightFormat:
    """One way to store a matrix (M, K): weight = values[code] * scale.

    It may store parameters of these `roles` in models that were trained with `weights` (None: with
    any quantised weights). `quantize` converts float32 weights to the stored tensors. Without it,
    the quantiser of training computes the integers, and encode() packs them.
    """

    name: str
    bits: int
    dtype: str  # of the stored tensor
    roles: tuple[Role, ...]
    activations: ActivationEncoding
    weights: WeightKind | None = None
    values: Sequence[int] = ()  # of codes 0, 1, ...; int8 stores values, not codes; empty: floats
    block_columns: int = 1  # 1: row-major, one weight per item; otherwise packed by layout.py
    unit_bytes: int = layout.BLOCK_BYTES  # of a row that are contiguous in a block
    padding: int = 0  # the code past the last row or column
    scale: PerTensor | PerRow | PerGroup | None = None
    quantize: Callable[[Floats], tuple[Array, Array | None]] | None = None

    def tensors(self, name: str, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
        """Return dtype and shape of the tensors that store the parameter `name`."""
        if self.scale is None:
            return {name: TensorSpec(self.dtype, shape)}
        M, K = shape
        stored = shape if self.block_columns == 1 else layout.code_shape(M, K, self.bits)
        scales = TensorSpec(self.scale.dtype, self.scale.shape(M, K))
        return {name: TensorSpec(self.dtype, stored), scale_name(name): scales}

    def encode(self, weights: Int8s) -> Codes:
        """Pack integer weights (M, K); ValueError for one that has no code."""
        if weights.ndim != 2 or weights.dtype != np.int8:
            raise ValueError(
                f"weights must be int8 (M, K) but are {weights.dtype} of shape {weights.shape}"
            )
        code_of = np.full(256, _NO_CODE, dtype=np.uint8)  # by the bits of the value
        code_of[np.array(self.values, dtype=np.int8).view(np.uint8)] = np.arange(len(self.values))
        pieces = layout.row_pieces(*weights.shape)
        return np.concatenate([self._encode_piece(weights[rows], code_of) for rows in pieces])

    def _encode_piece(self, weights: Int8s, code_of: Codes) -> Codes:
        raw = weights.tobytes().translate(code_of.tobytes())  # faster than an index of integers
        codes: Codes = np.frombuffer(raw, dtype=np.uint8).reshape(weights.shape)
        if codes.max(initial=0) == _NO_CODE:
            bad = weights[codes == _NO_CODE][0]
            raise ValueError(f"weights must be in {set(self.values)} but one is {bad}")
        return layout.pack_codes(codes, self.bits, self.padding, self.unit_bytes)

    def decode(self, codes: Codes, M: int, K: int) -> Int8s:
        """Invert encode(); invalid codes extrapolate the values, as in the kernels."""
        first, step = self.values[0], self.values[1] - self.values[0]
        unpacked = layout.unpack_codes(codes, M, K, self.bits, self.unit_bytes).astype(np.int8)
        return unpacked * np.int8(step) + np.int8(first)

    def dequantize(self, codes: Array, scales: Array, M: int, K: int) -> Floats:
        """Return the weights (M, K) in float32."""
        assert self.scale is not None
        integers = codes if self.block_columns == 1 else self.decode(codes, M, K)
        factors = self.scale.expand(scales, M, K).astype(np.float32)
        weights: Floats = integers.astype(np.float32) * factors
        return weights

    @property
    def is_integer(self) -> bool:
        """Whether weights are integers times a scale."""
        return bool(self.values)

    @property
    def label(self) -> str:
        """The name of this format in a summary of sizes."""
        is_quantized_projection = self.is_integer and "projection" in self.roles
        return f"{self.bits}-bit" if is_quantized_projection else self.name

    @cached_property
    def valid_bytes(self) -> NDArray[np.bool_]:
        """For each of the 256 bytes, whether all codes in it, or its value, are valid."""
        if self.block_columns == 1:
            values = np.arange(256, dtype=np.uint8).view(np.int8)
            return np.isin(values, np.array(self.values))
        fields = np.arange(256)[:, None] >> np.arange(0, 8, self.bits) & (1 << self.bits) - 1
        valid: NDArray[np.bool_] = np.all(fields < max(len(self.values), 1), axis=1)
        return valid


TERNARY = WeightFormat(
    "ternary",
    bits=2,
    dtype="U8",
    roles=("projection", "head"),
    activations=INT8_PER_TOKEN,
    weights="ternary",
    values=(-1, 0, 1),
    block_columns=128,
    padding=1,
    scale=PerTensor("F32"),
)
TERNARY_ROW = replace(TERNARY, name="ternary_row", weights="ternary_row", scale=PerRow("F32"))
SIGN = WeightFormat(
    "sign",
    bits=1,
    dtype="U8",
    roles=("projection",),
    activations=INT8_PER_TOKEN,
    weights="sign",
    values=(-1, 1),
    block_columns=256,
    scale=PerTensor("F32"),
)


def _weights_only(
    base: WeightFormat, name: WeightKind, scale: PerRow | PerGroup, values: Sequence[int]
) -> WeightFormat:
    """Return a format of weights-only quantisation (A16), with the bits of `base`."""
    return replace(
        base,
        name=name,
        roles=("projection", "embedding", "head"),
        activations=INT8_PER_GROUP,
        weights=name,
        values=values,
        unit_bytes=4,
        scale=scale,
    )


_G64, _G128 = PerGroup(64, "F16", per_block=2), PerGroup(128, "F16")
TERNARY_G64 = _weights_only(TERNARY, "ternary_g64", _G64, TERNARY.values)
TERNARY_G128 = _weights_only(TERNARY, "ternary_g128", _G128, TERNARY.values)
TERNARY_ROW_A16 = _weights_only(TERNARY, "ternary_row_a16", PerRow("F32"), TERNARY.values)
INT2_G64 = _weights_only(TERNARY, "int2_g64", _G64, (-1, 0, 1, 2))
INT2_G128 = _weights_only(TERNARY, "int2_g128", _G128, (-1, 0, 1, 2))
ODD_G128 = _weights_only(TERNARY, "odd_g128", _G128, (-3, -1, 1, 3))
SIGN_G128 = _weights_only(SIGN, "sign_g128", PerGroup(128, "F16", per_block=2), SIGN.values)
INT8 = WeightFormat(
    "int8",
    bits=8,
    dtype="I8",
    roles=("embedding", "head"),
    activations=INT16_PER_TOKEN,
    values=range(-127, 128),
    scale=PerRow("F32"),
    quantize=layout.quantize_rows,
)
INT4 = WeightFormat(
    "int4",
    bits=4,
    dtype="U8",
    roles=("head",),
    activations=INT16_PER_TOKEN,
    values=range(-8, 8),
    block_columns=64,
    padding=8,
    scale=PerGroup(64, "F16"),
    quantize=layout.quantize_int4,
)
F32 = WeightFormat(
    "f32",
    bits=32,
    dtype="F32",
    roles=("projection", "embedding", "head", "norm", "bias", "float"),
    activations=FLOAT32_ACTIVATIONS,
    weights="dense",
    quantize=lambda rows: (rows, None),
)
F16 = WeightFormat(
    "f16",
    bits=16,
    dtype="F16",
    roles=("projection", "embedding", "head"),
    activations=FLOAT32_ACTIVATIONS,
    weights="dense",
    quantize=lambda rows: (layout.to_float16(rows), None),
)

FORMATS: Mapping[str, WeightFormat] = {
    format.name: format
    for format in (
        TERNARY,
        TERNARY_ROW,
        SIGN,
        TERNARY_G64,
        TERNARY_G128,
        TERNARY_ROW_A16,
        SIGN_G128,
        INT2_G64,
        INT2_G128,
        ODD_G128,
        INT4,
        INT8,
        F32,
        F16,
    )
}
# The choices for projections, and for a head that was trained in floating point.
PROJECTION_FORMATS = {name: f for name, f in FORMATS.items() if "projection" in f.roles}
HEAD_FORMATS = {format.name: format for format in (INT8, INT4, F16, F32)}

pack_ternary, unpack_ternary = TERNARY.encode, TERNARY.decode
pack_sign, unpack_sign = SIGN.encode, SIGN.decode


def formats_of(weights: WeightKind) -> list[WeightFormat]:
    """Return the projection formats of models trained with `weights`, the default first."""
    return [format for format in PROJECTION_FORMATS.values() if format.weights == weights]


def is_quantized(weights: WeightKind) -> bool:
    """Whether models trained with `weights` have integer weights."""
    return formats_of(weights)[0].is_integer


def projection_format(name: str) -> WeightFormat:
    """Return a format for projections by its name; ConfigError lists the names."""
    if name not in PROJECTION_FORMATS:
        raise ConfigError(f"weights must be one of {', '.join(PROJECTION_FORMATS)} but is {name!r}")
    return PROJECTION_FORMATS[name]


def head_format(name: str) -> WeightFormat:
    """Return a format for the head by its name; ConfigError lists the usual names."""
    if name not in FORMATS or "head" not in FORMATS[name].roles:
        raise ConfigError(f"head must be one of {', '.join(HEAD_FORMATS)} but is {name!r}")
    return FORMATS[name]
