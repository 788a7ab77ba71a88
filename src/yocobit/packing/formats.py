"""The closed table of weight formats and activation encodings: one record each.

A format belongs to a matrix, not to a model. Layout, expected tensors, verification, sizes, random
models, CLI choices and kernel dispatch read these records. native/ has the same table, and a test
compares the two.

Letters: M output features   K input features   N tokens
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from yocobit import _native
from yocobit.config import ConfigError, ModelConfig, WeightKind
from yocobit.errors import shown
from yocobit.mixers import Parameter, Role, model_parameters
from yocobit.packing import layout
from yocobit.packing.format import DTYPES, TensorSpec, scale_name
from yocobit.packing.layout import ROWS, Array, Codes, Floats, Int8s

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
class PerTensor:
    """One scale for the whole matrix."""

    dtype: str

    def shape(self, M: int, K: int) -> tuple[int, ...]:
        """Return the shape of the stored scales."""
        return (1,)

    def expand(self, scales: Array, M: int, K: int) -> Array:
        """Return the scales in a shape that broadcasts to (M, K)."""
        return scales


@dataclass(frozen=True)
class PerRow:
    """One scale per output feature."""

    dtype: str

    def shape(self, M: int, K: int) -> tuple[int, ...]:
        return (M,)

    def expand(self, scales: Array, M: int, K: int) -> Array:
        return scales[:, None]


@dataclass(frozen=True)
class PerGroup:
    """One scale per `columns` consecutive weights of a row; 0 for a group of zeros."""

    columns: int
    dtype: str
    per_block: int = 1  # groups of a row in a block of codes

    def shape(self, M: int, K: int) -> tuple[int, ...]:
        return -(-M // ROWS), self.stored_groups(-(-K // self.columns)), ROWS

    def expand(self, scales: Array, M: int, K: int) -> Array:
        return self.decode(scales, M, K).repeat(self.columns, axis=1)[:, :K]

    def encode(self, scales: Array) -> Array:
        """Return the stored form of scales (M, groups of a row); those past the last are 0."""
        M, groups = scales.shape
        padded = np.zeros((-(-M // ROWS) * ROWS, self.stored_groups(groups)), DTYPES[self.dtype])
        padded[:M, :groups] = scales
        return np.ascontiguousarray(padded.reshape(-1, ROWS, padded.shape[1]).transpose(0, 2, 1))

    def decode(self, scales: Array, M: int, K: int) -> Array:
        """Invert encode(): return scales (M, groups of a row)."""
        rows = scales.transpose(0, 2, 1).reshape(-1, scales.shape[1])[:M]
        return rows[:, : -(-K // self.columns)]

    def stored_groups(self, groups: int) -> int:
        """Return the number of stored scales of a row: those of whole blocks."""
        return -(-groups // self.per_block) * self.per_block


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
        is_quantised_projection = self.is_integer and "projection" in self.roles
        return f"{self.bits}-bit" if is_quantised_projection else self.name

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


class StoredParameter(NamedTuple):
    """A parameter and the format that stores it."""

    format: WeightFormat
    shape: tuple[int, ...]
    role: Role


def formats_of(weights: WeightKind) -> list[WeightFormat]:
    """Return the projection formats of models trained with `weights`, the default first."""
    return [format for format in PROJECTION_FORMATS.values() if format.weights == weights]


def is_quantised(weights: WeightKind) -> bool:
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


def stored_parameters(
    config: ModelConfig,
    weights: str | None = None,
    head: str | None = None,
    formats: Mapping[str, WeightFormat] | None = None,
) -> dict[str, StoredParameter]:
    """Return each parameter of a packed model with its format, in the order of the file.

    `weights` and `head` name formats. None is the model's default for the projections; for the
    head it is int8, or the format of dense projections. The embedding has the format of the head
    if that is "f16" or "f32", and int8 otherwise. A tied head has an entry only if its format
    differs from that of the embedding. `formats` replaces those of single parameters. ConfigError
    for unknown formats, those of other weights, and those that do not store the parameter.
    """
    possible = formats_of(config.weights)
    projection = possible[0] if weights is None else projection_format(weights)
    if projection not in possible:
        names = " or ".join(format.name for format in possible)
        raise ConfigError(
            f"weights must be {names} for a model with {config.weights} weights but is {weights!r}"
        )
    default = INT8 if projection.is_integer else projection
    head_stored = default if head is None else head_format(head)
    by_role: dict[Role, WeightFormat] = {
        "projection": projection,
        "embedding": _embedding(head_stored),
        "head": head_stored,
        "norm": F32,
        "bias": F32,
        "float": F32,
    }
    formats = formats or {}
    parameters = model_parameters(config)
    if config.tie_embeddings and head is None and "embedding.weight" in formats:
        by_role["head"] = formats["embedding.weight"]
    tables = [formats.get(f"{role}.weight", by_role[role]) for role in TABLES]
    if config.tie_embeddings and tables[0] is not tables[1]:
        parameters["head.weight"] = Parameter((config.vocab_size, config.d_model), "head")
    for name, format in formats.items():
        if name not in parameters:
            raise ConfigError(f"formats must name parameters of the model but has {shown(name)}")
        if (role := parameters[name].role) not in format.roles:
            storing = [each.name for each in FORMATS.values() if role in each.roles]
            raise ConfigError(
                f"format of '{name}' must be {' or '.join(storing)} but is {format.name}"
            )
    return {
        name: StoredParameter(
            formats.get(name, by_role[parameter.role]), parameter.shape, parameter.role
        )
        for name, parameter in parameters.items()
    }


def _embedding(head: WeightFormat) -> WeightFormat:
    """Return the format of the embedding in a model with that head."""
    return head if "embedding" in head.roles else INT8


def parameters_by_dtype(
    config: ModelConfig,
    dtypes: Mapping[str, str],
    formats: Mapping[str, WeightFormat] | None = None,
) -> dict[str, StoredParameter]:
    """Return the parameters with the formats that the dtypes of their tensors imply.

    `formats` are those of single parameters, as in stored_parameters.
    """
    formats = formats or {}

    def is_stored_in(name: str, format: WeightFormat) -> bool:
        return name in formats or dtypes.get(name) == format.dtype

    roles = {name: parameter.role for name, parameter in model_parameters(config).items()}
    projections = [name for name, role in roles.items() if role == "projection"]
    own = next((name for name in projections if name not in formats), projections[0])
    possible = formats_of(config.weights)
    weights = next((each.name for each in possible if is_stored_in(own, each)), None)
    head_name = "head.weight" if "head.weight" in dtypes else "embedding.weight"
    heads = (
        format.name
        for format in HEAD_FORMATS.values()
        if is_stored_in(head_name, format) and is_stored_in("embedding.weight", _embedding(format))
    )
    # A tied head without a tensor has the recorded format of the embedding.
    has_own_format = head_name == "head.weight" or head_name not in formats
    head = next(heads, None) if has_own_format or not config.tie_embeddings else None
    return stored_parameters(config, weights, head, formats)


def formats_to_record(
    config: ModelConfig, parameters: Mapping[str, StoredParameter]
) -> dict[str, str]:
    """Return the names of the formats that parameters_by_dtype would not find by itself."""
    specs = tensors_of(parameters)
    found = parameters_by_dtype(config, {name: specs[name].dtype for name in parameters})
    return {
        name: stored.format.name for name, stored in parameters.items() if found.get(name) != stored
    }


def expected_tensors(
    config: ModelConfig, weights: str | None = None, head: str | None = None
) -> dict[str, TensorSpec]:
    """Return dtype and shape of every tensor in the file; arguments as in stored_parameters."""
    return tensors_of(stored_parameters(config, weights, head))


def tensors_of(parameters: Mapping[str, StoredParameter]) -> dict[str, TensorSpec]:
    """Return dtype and shape of the tensors that store the parameters, in their order."""
    tensors: dict[str, TensorSpec] = {}
    for name, stored in parameters.items():
        tensors |= stored.format.tensors(name, stored.shape)
    return tensors
