"""How weights lie in a packed file, in NumPy. docs/format.md is the same in words.

A bit matrix stores rows in groups of ROWS; a group is its blocks from left to right, a block one
stretch of BLOCK_BYTES bytes per row. Byte b of a block holds columns b, b + 32, b + 64, ... of the
block, the first in its lowest bits.

Letters: M output features   K input features
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROWS = 8
BLOCK_BYTES = 32
TERNARY_COLUMNS = BLOCK_BYTES * 8 // 2  # of a block
SIGN_COLUMNS = BLOCK_BYTES * 8
INT4_COLUMNS = BLOCK_BYTES * 8 // 4

# As yocobit.model.bitlinear has it, which needs torch.
SMALLEST_SCALE = np.float32(1e-12)

Codes = NDArray[np.uint8]
Int8s = NDArray[np.int8]
Floats = NDArray[np.float32]


def ternary_shape(M: int, K: int) -> tuple[int, int, int, int]:
    """Return the shape of the codes of ternary weights (M, K)."""
    return -(-M // ROWS), -(-K // TERNARY_COLUMNS), ROWS, BLOCK_BYTES


def sign_shape(M: int, K: int) -> tuple[int, int, int, int]:
    """Return the shape of the codes of sign weights (M, K)."""
    return -(-M // ROWS), -(-K // SIGN_COLUMNS), ROWS, BLOCK_BYTES


def pack_ternary(weights: Int8s) -> Codes:
    """Pack weights (M, K) in {-1, 0, +1} as 2-bit codes w + 1; padding has weight 0."""
    _check_values(weights, (-1, 0, 1))
    return _pack((weights + 1).astype(np.uint8), bits=2, padding=1)


def unpack_ternary(codes: Codes, M: int, K: int) -> Int8s:
    """Invert pack_ternary; the invalid code 3 comes out as 2, as the kernels read it."""
    _check_codes(codes, ternary_shape(M, K))
    return _unpack(codes, M, K, bits=2).astype(np.int8) - np.int8(1)


def pack_sign(weights: Int8s) -> Codes:
    """Pack weights (M, K) in {-1, +1} as bits, 1 for +1; padding has bit 0.

    Padding counts for nothing: activations are padded with 0, and no row past M is read.
    """
    _check_values(weights, (-1, 1))
    return _pack((weights > 0).astype(np.uint8), bits=1, padding=0)


def unpack_sign(codes: Codes, M: int, K: int) -> Int8s:
    """Invert pack_sign."""
    _check_codes(codes, sign_shape(M, K))
    return _unpack(codes, M, K, bits=1).astype(np.int8) * np.int8(2) - np.int8(1)


def quantize_rows(rows: Floats) -> tuple[Int8s, Floats]:
    """Round rows (M, K) to int8 in [-127, 127], half to even; also return their scales (M,).

    Codes times scale approximates the row; the scale of a row of zeros is positive too.
    """
    largest = np.maximum(np.abs(rows).max(axis=1), SMALLEST_SCALE)  # (M,)
    codes = np.rint(rows * (np.float32(127) / largest)[:, None])
    return codes.astype(np.int8), largest / np.float32(127)


def int4_shape(M: int, K: int) -> tuple[int, int, int, int]:
    """Return the shape of the codes of int4 weights (M, K); scales lack the last dimension."""
    return -(-M // ROWS), -(-K // INT4_COLUMNS), ROWS, BLOCK_BYTES


def pack_int4(rows: Floats) -> tuple[Codes, NDArray[np.float16]]:
    """Round rows (M, K) to 4-bit codes in [-7, 7] with a float16 scale per 64 columns; pack both.

    Codes are stored plus 8. ValueError for a weight that float16 scales cannot reach.
    """
    M, K = rows.shape
    groups, blocks, _, _ = int4_shape(M, K)
    padded = np.zeros((groups * ROWS, blocks * INT4_COLUMNS), dtype=np.float32)
    padded[:M, :K] = rows
    stretches = padded.reshape(groups * ROWS, blocks, INT4_COLUMNS)
    with np.errstate(over="ignore"):  # checked below
        scales = (np.abs(stretches).max(axis=2) / np.float32(7)).astype(np.float16)  # (M, blocks)
    if not np.isfinite(scales).all():
        raise ValueError(f"weights must be within 458528 for int4 but reach {np.abs(rows).max():g}")
    divisors = np.maximum(scales.astype(np.float32), SMALLEST_SCALE)[:, :, None]
    codes = np.clip(np.rint(stretches / divisors), -7, 7).astype(np.int8) + np.int8(8)
    packed = _pack(codes.reshape(groups * ROWS, -1).astype(np.uint8), bits=4, padding=8)
    return packed, np.ascontiguousarray(scales.reshape(groups, ROWS, blocks).transpose(0, 2, 1))


def unpack_int4(codes: Codes, scales: NDArray[np.float16], M: int, K: int) -> Floats:
    """Return the weights (M, K) that pack_int4 left."""
    _check_codes(codes, int4_shape(M, K))
    weights = _unpack(codes, M, K, bits=4).astype(np.float32) - np.float32(8)
    rows = scales.transpose(0, 2, 1).reshape(-1, scales.shape[1])[:M].astype(np.float32)
    return weights * rows.repeat(INT4_COLUMNS, axis=1)[:, :K]


def _pack(codes: Codes, bits: int, padding: int) -> Codes:
    M, K = codes.shape
    per_byte = 8 // bits
    groups, blocks = -(-M // ROWS), -(-K // (BLOCK_BYTES * per_byte))
    padded = np.full((groups * ROWS, blocks * BLOCK_BYTES * per_byte), padding, dtype=np.uint8)
    padded[:M, :K] = codes
    fields = padded.reshape(groups, ROWS, blocks, per_byte, BLOCK_BYTES)
    packed = np.zeros((groups, ROWS, blocks, BLOCK_BYTES), dtype=np.uint8)
    for i in range(per_byte):
        packed |= fields[:, :, :, i] << np.uint8(i * bits)
    return np.ascontiguousarray(packed.transpose(0, 2, 1, 3))


def _unpack(codes: Codes, M: int, K: int, bits: int) -> Codes:
    groups, blocks = codes.shape[:2]
    per_byte = 8 // bits
    fields = np.empty((groups, ROWS, blocks, per_byte, BLOCK_BYTES), dtype=np.uint8)
    for i in range(per_byte):
        shifted = codes >> np.uint8(i * bits) & np.uint8((1 << bits) - 1)
        fields[:, :, :, i] = shifted.transpose(0, 2, 1, 3)
    return fields.reshape(groups * ROWS, -1)[:M, :K]


def _check_values(weights: Int8s, allowed: tuple[int, ...]) -> None:
    if weights.ndim != 2 or weights.dtype != np.int8:
        raise ValueError(
            f"weights must be int8 (M, K) but are {weights.dtype} of shape {weights.shape}"
        )
    if not np.isin(weights, allowed).all():
        bad = weights[~np.isin(weights, allowed)][0]
        raise ValueError(f"weights must be in {set(allowed)} but one is {bad}")


def _check_codes(codes: Codes, shape: tuple[int, ...]) -> None:
    if codes.shape != shape or codes.dtype != np.uint8:
        raise ValueError(
            f"codes must be uint8 of shape {shape} but are {codes.dtype} of shape {codes.shape}"
        )
