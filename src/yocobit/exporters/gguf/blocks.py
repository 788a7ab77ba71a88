"""Blocks of GGUF tensor types, packed: the inverse of importers/gguf/blocks.py.

Every function takes integers and float16 scales and rounds nothing.

Letters: M rows   K columns
"""

from __future__ import annotations

import numpy as np

from yocobit.packing.layout import Array, Codes, Int8s

_BASE_3 = np.array([81, 27, 9, 3, 1], dtype=np.uint16)


def tq2_0(trits: Int8s, scales: Array) -> Codes:
    """Return (M, K / 256 * 66) of trits (M, K) and scales (M,) or (1,)."""
    fields = _codes(trits).reshape(len(trits), -1, 2, 4, 32)
    packed = fields[:, :, :, 0].copy()
    for i in range(1, 4):
        packed |= fields[:, :, :, i] << np.uint8(2 * i)
    return _with_scales(packed.reshape(len(trits), -1, 64), scales, scale_first=False)


def tq1_0(trits: Int8s, scales: Array) -> Codes:
    """Return (M, K / 256 * 54) of trits (M, K) and scales (M,) or (1,)."""
    codes = _codes(trits).reshape(len(trits), -1, 256)
    packed = [
        _fractions(codes[:, :, :160].reshape(*codes.shape[:2], 5, 32)),
        _fractions(codes[:, :, 160:240].reshape(*codes.shape[:2], 5, 16)),
        _fractions(codes[:, :, 240:].reshape(*codes.shape[:2], 4, 4)),
    ]
    return _with_scales(np.concatenate(packed, axis=2), scales, scale_first=False)


def q2_0(integers: Int8s, scales: Array) -> Codes:
    """Return (M, K / 64 * 18) of integers (M, K) from -1 to 2 and scales (M, K / 64)."""
    codes = _codes(integers).reshape(len(integers), -1, 16, 4)
    packed = codes[..., 0].copy()
    for i in range(1, 4):
        packed |= codes[..., i] << np.uint8(2 * i)
    return _with_scales(packed, scales, scale_first=True)


def q1_0(signs: Int8s, scales: Array) -> Codes:
    """Return (M, K / 128 * 18) of signs (M, K) and scales (M, K / 128)."""
    packed = np.packbits(signs > 0, axis=1, bitorder="little")
    return _with_scales(packed.reshape(len(signs), -1, 16), scales, scale_first=True)


def q8_0(integers: Int8s, scales: Array) -> Codes:
    """Return (M, K / 32 * 34) of integers (M, K) and scales (M,)."""
    codes = np.ascontiguousarray(integers).view(np.uint8)
    return _with_scales(codes.reshape(len(integers), -1, 32), scales, scale_first=True)


def q4_0(codes: Codes, scales: Array) -> Codes:
    """Return (M, K / 32 * 18) of codes (M, K), integers + 8, and scales (M, K / 32)."""
    halves = codes.reshape(len(codes), -1, 2, 16)
    packed = halves[:, :, 0] | halves[:, :, 1] << np.uint8(4)
    return _with_scales(packed, scales, scale_first=True)


def _codes(trits: Int8s) -> Codes:
    return (trits + np.int8(1)).view(np.uint8)


def _fractions(digits: Codes) -> Codes:
    """Return bytes (..., n) of digits (..., 4 or 5, n) in base 3, as fractions of 256, rounded up.

    At most 242 * 256 + 242 = 62194 in the uint16.
    """
    powers = _BASE_3[: digits.shape[-2], None]
    numbers = (digits * powers).sum(axis=-2, dtype=np.uint16)
    fractions: Codes = ((numbers * np.uint16(256) + np.uint16(242)) // np.uint16(243)).astype("u1")
    return fractions


def _with_scales(packed: Codes, scales: Array, scale_first: bool) -> Codes:
    """Return blocks (M, N * bytes) of packed (M, N, bytes) with the scale of each."""
    M, N = packed.shape[:2]
    if scales.ndim == 1:
        scales = scales[:, None]
    halves = np.broadcast_to(scales.astype("<f2"), (M, N)).copy().view(np.uint8).reshape(M, N, 2)
    parts = [halves, packed] if scale_first else [packed, halves]
    return np.concatenate(parts, axis=2).reshape(M, -1)
