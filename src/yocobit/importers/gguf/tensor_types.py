"""The closed table of tensor types in GGUF files, and reading a tensor of one of them.

Forks of llama.cpp use the same id for different types. `identify` distinguishes them by the size of
the tensor in the file. A type without a decoder is refused by its name.

Letters: M rows   K columns   N blocks
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from yocobit.importers.gguf import blocks
from yocobit.importers.gguf.container import GGUFFile, TensorInfo
from yocobit.packing.layout import Codes, Floats, Int8s

_CHUNK_WEIGHTS = 1 << 20  # decoded at once: temporary arrays stay in the caches


class CodeBlocks(NamedTuple):
    """Weights as codes with a scale: weight = values[code] * scale."""

    unpack: Callable[[Codes], Codes]  # (N, bytes) to (N, weights)
    values: tuple[int, ...]
    # The byte of the float16 scale in a block: the first two bytes or the last. None: one float32
    # after the last block.
    scale: int | None

    @property
    def may_have_2(self) -> bool:
        """Whether code 3 is the value 2; only types with four 2-bit codes in a byte have it."""
        return 2 in self.values


@dataclass(frozen=True)
class TensorType:
    """One way to store weights in blocks; without `floats` and `codes` it is not supported."""

    name: str
    id: int
    block: int  # weights
    block_bytes: int
    floats: Callable[[Codes], Floats] | None = None  # (N, bytes) to (N, weights)
    codes: CodeBlocks | None = None
    tail_bytes: int = 0  # after the last block

    @property
    def is_supported(self) -> bool:
        """Whether tensors of the type can be read."""
        return self.floats is not None or self.codes is not None

    def size(self, n_weights: int) -> int:
        """Return the bytes of a tensor."""
        return n_weights // self.block * self.block_bytes + self.tail_bytes


class ScaledIntegers(NamedTuple):
    """A matrix as integers (M, K) and scales."""

    integers: Int8s
    scales: Floats  # (M, K / columns of a scale), or (1,)


_TERNARY = (-1, 0, 1)
_INT2 = (-1, 0, 1, 2)

# The trailing 32 bytes of I2_S start with the scale; the others are unused. Two builds of
# bitnet.cpp write other orders of weights with the same id, size and codes: ARM since November 2025
# (64 weights in 16 bytes) and x86 without ACT_PARALLEL (four rows in a byte). Such a file has no
# mark of its order. Both converters, and every known published file, have the order read here.
_I2_S = CodeBlocks(blocks.i2_s, _TERNARY, scale=None)
_Q2_0 = CodeBlocks(blocks.q2_0, _INT2, scale=0)
_STQ1_0 = CodeBlocks(blocks.stq1_0, _TERNARY, scale=40)

TYPES = (
    TensorType("F32", 0, 1, 4, floats=blocks.f32),
    TensorType("F16", 1, 1, 2, floats=blocks.f16),
    TensorType("Q4_0", 2, 32, 18, floats=blocks.q4_0),
    TensorType("Q4_1", 3, 32, 20, floats=blocks.q4_1),
    TensorType("Q5_0", 6, 32, 22, floats=blocks.q5_0),
    TensorType("Q5_1", 7, 32, 24, floats=blocks.q5_1),
    TensorType("Q8_0", 8, 32, 34, floats=blocks.q8_0),
    TensorType("Q8_1", 9, 32, 36),
    TensorType("Q2_K", 10, 256, 84),
    TensorType("Q3_K", 11, 256, 110),
    TensorType("Q4_K", 12, 256, 144, floats=blocks.q4_k),
    TensorType("Q5_K", 13, 256, 176, floats=blocks.q5_k),
    TensorType("Q6_K", 14, 256, 210, floats=blocks.q6_k),
    TensorType("Q8_K", 15, 256, 292),
    TensorType("IQ2_XXS", 16, 256, 66),
    TensorType("IQ2_XS", 17, 256, 74),
    TensorType("IQ3_XXS", 18, 256, 98),
    TensorType("IQ1_S", 19, 256, 50),
    TensorType("IQ4_NL", 20, 32, 18),
    TensorType("IQ3_S", 21, 256, 110),
    TensorType("IQ2_S", 22, 256, 82),
    TensorType("IQ4_XS", 23, 256, 136),
    TensorType("I8", 24, 1, 1),
    TensorType("I16", 25, 1, 2),
    TensorType("I32", 26, 1, 4),
    TensorType("I64", 27, 1, 8),
    TensorType("F64", 28, 1, 8),
    TensorType("IQ1_M", 29, 256, 56),
    TensorType("BF16", 30, 1, 2, floats=blocks.bf16),
    TensorType("Q4_0_4_4", 31, 32, 18),
    TensorType("Q4_0_4_8", 32, 32, 18),
    TensorType("Q4_0_8_8", 33, 32, 18),
    TensorType("TQ1_0", 34, 256, 54, codes=CodeBlocks(blocks.tq1_0, _TERNARY, scale=52)),
    TensorType("TQ2_0", 35, 256, 66, codes=CodeBlocks(blocks.tq2_0, _INT2, scale=64)),
    TensorType("I2_S", 36, 128, 32, codes=_I2_S, tail_bytes=32),  # microsoft/BitNet
    TensorType("IQ4_NL_4_4", 36, 32, 18),
    TensorType("IQ4_NL_4_8", 37, 32, 18),
    TensorType("IQ4_NL_8_8", 38, 32, 18),
    TensorType("MXFP4", 39, 32, 17),
    # Tencent's forks have Q2_0C and STQ1_0, PrismML's has Q2_0 with 128 weights, PQ2_0 and PTQ1_0.
    TensorType("NVFP4", 40, 64, 36),
    TensorType("Q2_0C", 40, 512, 130, codes=CodeBlocks(blocks.q2_0, (-3, -1, 1, 3), scale=0)),
    TensorType("Q1_0", 41, 128, 18, codes=CodeBlocks(blocks.q1_0, (-1, 1), scale=0)),
    TensorType("Q2_0", 42, 64, 18, codes=_Q2_0),
    TensorType("Q2_0 with 128 weights per scale", 42, 128, 34, codes=_Q2_0),
    TensorType("STQ1_0", 42, 256, 42, codes=_STQ1_0),
    TensorType("STQ1_0", 43, 256, 42, codes=_STQ1_0),
    TensorType("PQ2_0", 142, 128, 34, codes=_Q2_0),
    TensorType("PTQ1_0", 143, 128, 28, codes=CodeBlocks(blocks.ptq1_0, _TERNARY, scale=26)),
)
# Types whose size depends on more than the number of weights: of microsoft/BitNet and ik_llama.cpp.
_OTHERS = {37: "I8_S", 38: "TL1", 39: "TL2", 134: "IQ1_BN", 135: "IQ2_BN"}

SUPPORTED = tuple(dict.fromkeys(each.name for each in TYPES if each.is_supported))


def identify(file: GGUFFile, tensor: TensorInfo) -> TensorType:
    """Return the type of a tensor; ConfigError if it is unknown, unsupported or of another size.

    The type must account for all bytes up to the next tensor or the end of the file, except for the
    padding to the alignment.
    """
    subject = f"tensor '{tensor.name}'"
    same_id = [each for each in TYPES if each.id == tensor.type_id]
    fitting = [each for each in same_id if _fits(each, tensor, file.alignment)]
    if len(fitting) == 1 and fitting[0].is_supported:
        return fitting[0]
    names = " or ".join(each.name for each in fitting or same_id)
    if len(fitting) > 1:
        raise file.error(
            f"{subject} may be of type {names}, which have the same id {tensor.type_id} and here "
            "the same size; choose another file of the model"
        )
    if not fitting and tensor.type_id in _OTHERS:
        names = _OTHERS[tensor.type_id]
    elif not fitting and same_id:
        raise file.error(
            f"{subject} has {tensor.span} bytes, which is not the size of {tensor.shape} weights "
            f"of type {names}; the file is damaged or incomplete: download it again"
        )
    raise file.error(
        f"{subject} must be of a type in {', '.join(SUPPORTED)} but is "
        f"{names or f'of the unknown id {tensor.type_id}'}; choose another file of the model"
    )


def read_floats(file: GGUFFile, tensor: TensorInfo, type: TensorType) -> Floats:
    """Return a tensor in float32, of its shape; ConfigError if a value is not finite."""
    n_blocks = math.prod(tensor.shape) // type.block
    floats = np.empty((n_blocks, type.block), dtype=np.float32)
    decode = type.floats or _scaled(file, tensor, type)
    for start, end in _chunks(n_blocks, type.block):
        with np.errstate(invalid="ignore", over="ignore"):
            floats[start:end] = decode(_blocks(file, tensor, type, start, end))
        if not np.isfinite(floats[start:end]).all():
            raise file.error(f"tensor '{tensor.name}' must be finite but is not")
    return floats.reshape(tensor.shape)


def read_integers(file: GGUFFile, tensor: TensorInfo, type: TensorType) -> ScaledIntegers:
    """Return a tensor of a type with codes; ConfigError for a code without a value."""
    assert type.codes is not None
    values = np.array(type.codes.values, dtype=np.int8)
    step = values[1] - values[0]
    n_blocks = math.prod(tensor.shape) // type.block
    integers = np.empty((n_blocks, type.block), dtype=np.int8)
    n_bad = 0
    for start, end in _chunks(n_blocks, type.block):
        codes = type.codes.unpack(_blocks(file, tensor, type, start, end))
        if codes.max() >= len(values):
            n_bad += int((codes >= len(values)).sum())
        # The values are linear in the code, which is faster than an index of integers.
        if step != 1:
            codes *= np.uint8(step)
        np.add(codes.view(np.int8), values[0], out=integers[start:end])
    if n_bad:
        raise file.error(
            f"tensor '{tensor.name}' must have codes 0, 1 and 2 but {n_bad} "
            f"({n_bad / integers.size:.2%}) are 3: it is not a ternary matrix of type {type.name}; "
            "choose another file of the model"
        )
    return ScaledIntegers(integers.reshape(tensor.shape), read_scales(file, tensor, type))


def has_twos(file: GGUFFile, tensor: TensorInfo, type: TensorType) -> bool:
    """Whether a weight of a type with codes is 2 times its scale."""
    assert type.codes is not None
    if not type.codes.may_have_2:
        return False
    at = type.codes.scale
    packed = slice(2, None) if at == 0 else slice(0, at)
    n_blocks = math.prod(tensor.shape) // type.block
    return any(
        blocks.has_code_3(_blocks(file, tensor, type, start, end)[:, packed])
        for start, end in _chunks(n_blocks, type.block)
    )


def read_scales(file: GGUFFile, tensor: TensorInfo, type: TensorType) -> Floats:
    """Return the scales of a type with codes: (1,), or one per row and block."""
    assert type.codes is not None
    n_weights = math.prod(tensor.shape)
    at = type.codes.scale
    if at is None:
        start = type.size(n_weights) - type.tail_bytes
        return file.read(tensor, start, start + 4).view("<f4").astype(np.float32)
    stored = _blocks(file, tensor, type, 0, n_weights // type.block)
    return blocks.half(stored, at).reshape(*tensor.shape[:-1], -1)


def _scaled(file: GGUFFile, tensor: TensorInfo, type: TensorType) -> Callable[[Codes], Floats]:
    """Return the function of blocks (N, bytes) to values[code] * scale (N, weights)."""
    assert type.codes is not None
    unpack, values, at = type.codes
    table = np.full(256, np.nan, dtype=np.float32)  # NaN, which is refused, for other codes
    table[: len(values)] = values
    whole = read_scales(file, tensor, type) if at is None else np.empty(0, dtype=np.float32)

    def decode(stored: Codes) -> Floats:
        scales = whole if at is None else blocks.half(stored, at)
        floats: Floats = table[unpack(stored)] * scales
        return floats

    return decode


def _blocks(file: GGUFFile, tensor: TensorInfo, type: TensorType, start: int, end: int) -> Codes:
    """Return blocks `start` to `end` (N, bytes) of a tensor."""
    data = file.read(tensor, start * type.block_bytes, end * type.block_bytes)
    return data.reshape(-1, type.block_bytes)


def _chunks(n_blocks: int, block: int) -> list[tuple[int, int]]:
    """Return the bounds of chunks of blocks."""
    step = max(_CHUNK_WEIGHTS // block, 1)
    return [(start, min(start + step, n_blocks)) for start in range(0, n_blocks, step)]


def _fits(type: TensorType, tensor: TensorInfo, alignment: int) -> bool:
    """Whether a tensor has the size of a type, apart from padding."""
    n_weights = math.prod(tensor.shape)
    # I2_S runs over the ends of rows; blocks of all other types end with their row.
    run = n_weights if type.tail_bytes else tensor.shape[-1]
    return run % type.block == 0 and 0 <= tensor.span - type.size(n_weights) < alignment
