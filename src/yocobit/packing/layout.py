"""The byte layout of packed codes, and the quantisation of rows to integers, in NumPy.

Codes are stored in groups of ROWS rows. A group stores its blocks from left to right; a block has
BLOCK_BYTES bytes per row. Byte b of a row holds columns b, b + 32, b + 64, ... of the block, the
first in the lowest bits. The rows of a block are interleaved in units of `unit` bytes: BLOCK_BYTES,
or 4 so that a vector register holds many rows.

Letters: M output features   K input features
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yocobit import _native

ROWS = _native.ROWS_PER_GROUP
BLOCK_BYTES = _native.BLOCK_BYTES
SMALLEST_SCALE = np.float32(_native.SMALLEST_ABSMAX)  # avoids a division by zero
_INT4_LIMIT = 7 * 65504  # 7 times the largest float16, the largest scale
_PIECE_WEIGHTS = 1 << 20  # rounded at once: temporary arrays stay in the caches

Array = NDArray[Any]
Codes = NDArray[np.uint8]
Int8s = NDArray[np.int8]
Floats = NDArray[np.float32]


def code_shape(M: int, K: int, bits: int) -> tuple[int, int, int, int]:
    """Return the shape of the packed codes of a matrix (M, K)."""
    return -(-M // ROWS), -(-K // block_columns(bits)), ROWS, BLOCK_BYTES


def block_columns(bits: int) -> int:
    """Return the number of columns in a block."""
    return BLOCK_BYTES * 8 // bits


def pack_codes(codes: Codes, bits: int, padding: int, unit: int = BLOCK_BYTES) -> Codes:
    """Pack codes (M, K) below 2 ** bits; `padding` fills up rows and columns past the last."""
    M, K = codes.shape
    per_byte = 8 // bits
    groups, blocks, _, _ = code_shape(M, K, bits)
    padded = np.full((groups * ROWS, blocks * block_columns(bits)), padding, dtype=np.uint8)
    padded[:M, :K] = codes
    fields = padded.reshape(groups, ROWS, blocks, per_byte, BLOCK_BYTES)
    packed = np.zeros((groups, ROWS, blocks, BLOCK_BYTES), dtype=np.uint8)
    for i in range(per_byte):
        packed |= fields[:, :, :, i] << np.uint8(i * bits)
    units = packed.reshape(groups, ROWS, blocks, -1, unit).transpose(0, 2, 3, 1, 4)
    return np.ascontiguousarray(units).reshape(groups, blocks, ROWS, BLOCK_BYTES)


def unpack_codes(packed: Codes, M: int, K: int, bits: int, unit: int = BLOCK_BYTES) -> Codes:
    """Invert pack_codes: return codes (M, K)."""
    shape = code_shape(M, K, bits)
    if packed.shape != shape or packed.dtype != np.uint8:
        raise ValueError(
            f"codes must be uint8 of shape {shape} but are {packed.dtype} of shape {packed.shape}"
        )
    groups, blocks = shape[:2]
    per_byte = 8 // bits
    rows = packed.reshape(groups, blocks, -1, ROWS, unit).transpose(0, 1, 3, 2, 4).reshape(shape)
    fields = np.empty((groups, ROWS, blocks, per_byte, BLOCK_BYTES), dtype=np.uint8)
    for i in range(per_byte):
        shifted = rows >> np.uint8(i * bits) & np.uint8((1 << bits) - 1)
        fields[:, :, :, i] = shifted.transpose(0, 2, 1, 3)
    return fields.reshape(groups * ROWS, -1)[:M, :K]


def quantize_rows(rows: Floats) -> tuple[Int8s, Floats]:
    """Round rows (M, K) to int8 in [-127, 127], half to even; return codes and scales (M,).

    Weights are approximately codes * scales. Every scale is positive, also that of a row of zeros.
    """
    codes = np.empty(rows.shape, dtype=np.int8)
    scales = np.empty(len(rows), dtype=np.float32)
    for piece in row_pieces(*rows.shape):
        largest = np.maximum(np.abs(rows[piece]).max(axis=1), SMALLEST_SCALE)
        codes[piece] = np.rint(rows[piece] * (np.float32(127) / largest)[:, None])
        scales[piece] = largest / np.float32(127)
    return codes, scales


def row_pieces(M: int, K: int) -> Iterator[slice]:
    """Yield slices of the rows of a matrix (M, K) that are converted at once.

    They start at multiples of ROWS.
    """
    step = max(_PIECE_WEIGHTS // max(K, 1) // ROWS, 1) * ROWS
    return (slice(start, start + step) for start in range(0, M, step))


def quantize_int4(rows: Floats) -> tuple[Codes, NDArray[np.float16]]:
    """Round rows (M, K) to integers in [-7, 7] with a float16 scale per row and block.

    Return packed codes (integer + 8) and scales (groups, blocks, ROWS). ValueError for weights
    beyond the range of float16 scales.
    """
    pieces = [_int4_piece(rows[piece]) for piece in row_pieces(*rows.shape)]
    codes, scales = zip(*pieces, strict=True)
    return np.concatenate(codes), np.concatenate(scales)


def _int4_piece(rows: Floats) -> tuple[Codes, NDArray[np.float16]]:
    M, K = rows.shape
    groups, blocks, _, _ = code_shape(M, K, bits=4)
    columns = block_columns(bits=4)
    padded = np.zeros((groups * ROWS, blocks * columns), dtype=np.float32)
    padded[:M, :K] = rows
    row_blocks = padded.reshape(groups * ROWS, blocks, columns)
    with np.errstate(over="ignore"):  # checked below
        scales = (np.abs(row_blocks).max(axis=2) / np.float32(7)).astype(np.float16)
    if not np.isfinite(scales).all():
        raise ValueError(
            f"weights must be within {_INT4_LIMIT} for int4 but reach {np.abs(rows).max():g}; "
            "choose int8"
        )
    divisors = np.maximum(scales.astype(np.float32), SMALLEST_SCALE)[:, :, None]
    integers = np.clip(np.rint(row_blocks / divisors), -7, 7).astype(np.int8)
    codes = (integers.reshape(groups * ROWS, -1) + np.int8(8)).astype(np.uint8)
    return (
        pack_codes(codes, bits=4, padding=8),
        np.ascontiguousarray(scales.reshape(groups, ROWS, blocks).transpose(0, 2, 1)),
    )


def to_float16(rows: Floats) -> NDArray[np.float16]:
    """Round to float16; ValueError for weights beyond its range."""
    largest, limit = float(max(rows.max(), -rows.min())), float(np.finfo(np.float16).max)
    if largest > limit:
        raise ValueError(
            f"weights must be within {limit:g} for f16 but reach {largest:g}; choose f32"
        )
    return rows.astype(np.float16)
