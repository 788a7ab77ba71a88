"""Decoding of blocks of weights: one function per tensor type, vectorised over blocks.

Floats are computed by the operations of ggml's reference code, in its order and in float32, so the
results are equal bit for bit. Codes are unsigned; tensor_types.py has their values.

Letters: N blocks   d scale   m minimum   ql, qh low and high bits of codes
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from yocobit.packing.layout import Codes, Floats

_BITS = np.arange(8, dtype=np.uint8)
# The four codes of each byte, lowest bits first, as the bytes of a word: one lookup for all four.
_FIELDS = np.arange(256, dtype=np.uint8)[:, None] >> _BITS[::2] & np.uint8(3)
_FOUR_CODES = _FIELDS.view(np.uint32).reshape(256)
_POWERS = np.array([1, 3, 9, 27, 81], dtype=np.uint8)
# The patterns of STQ1_0: one weight of four is 0. Each byte has four codes, lowest bits first; the
# second half has the opposite signs of the first.
_STQ_PATTERNS = bytes.fromhex("a9892909a68626069a921a126a624a42 012181a1042484a41018909840486068")
_STQ_CODES = _FIELDS[np.frombuffer(_STQ_PATTERNS, np.uint8)]


def half(blocks: Codes, at: int) -> Floats:
    """Return the float16 at a byte of each block as float32 (N, 1)."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def f32(blocks: Codes) -> Floats:
    """Return (N, 1) of (N, 4)."""
    return blocks.view("<f4")


def f16(blocks: Codes) -> Floats:
    """Return (N, 1) of (N, 2)."""
    return blocks.view("<f2").astype(np.float32)


def bf16(blocks: Codes) -> Floats:
    """Return (N, 1) of (N, 2): the upper half of a float32."""
    return (blocks.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


def q4_0(blocks: Codes) -> Floats:
    """Return (N, 32) of d, 16 bytes."""
    q = _nibbles(blocks[:, 2:18]).astype(np.int8) - np.int8(8)
    return half(blocks, 0) * q.astype(np.float32)


def q4_1(blocks: Codes) -> Floats:
    """Return (N, 32) of d, m, 16 bytes."""
    return half(blocks, 0) * _nibbles(blocks[:, 4:20]).astype(np.float32) + half(blocks, 2)


def q5_0(blocks: Codes) -> Floats:
    """Return (N, 32) of d, 32 high bits, 16 bytes."""
    q = _nibbles(blocks[:, 6:22]) | _bits(blocks[:, 2:6]) << np.uint8(4)
    return half(blocks, 0) * (q.astype(np.int8) - np.int8(16)).astype(np.float32)


def q5_1(blocks: Codes) -> Floats:
    """Return (N, 32) of d, m, 32 high bits, 16 bytes."""
    q = _nibbles(blocks[:, 8:24]) | _bits(blocks[:, 4:8]) << np.uint8(4)
    return half(blocks, 0) * q.astype(np.float32) + half(blocks, 2)


def q8_0(blocks: Codes) -> Floats:
    """Return (N, 32) of d, 32 int8."""
    return blocks[:, 2:34].view(np.int8).astype(np.float32) * half(blocks, 0)


def q4_k(blocks: Codes) -> Floats:
    """Return (N, 256) of d, dmin, 12 bytes of scales, 128 bytes of nibbles."""
    d, m = _scales_k(blocks)
    q = _sub_blocks(blocks[:, 16:144])  # (N, 8, 32)
    return (d * q.astype(np.float32) - m).reshape(-1, 256)


def q5_k(blocks: Codes) -> Floats:
    """Return (N, 256) of d, dmin, 12 bytes of scales, 32 bytes of high bits, 128 of nibbles."""
    d, m = _scales_k(blocks)
    qh = blocks[:, None, 16:48] >> _BITS[:, None] & np.uint8(1)  # (N, 8, 32)
    q = _sub_blocks(blocks[:, 48:176]) | qh << np.uint8(4)
    return (d * q.astype(np.float32) - m).reshape(-1, 256)


def q6_k(blocks: Codes) -> Floats:
    """Return (N, 256) of 128 bytes of nibbles, 64 of high bits, 16 int8 scales, d."""
    ql = blocks[:, :128].reshape(-1, 2, 1, 64) >> _BITS[:5:4, None] & np.uint8(15)
    qh = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> _BITS[::2, None] & np.uint8(3)
    q = ql.reshape(-1, 8, 32) | qh.reshape(-1, 8, 32) << np.uint8(4)
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32)
    d = (half(blocks, 208) * scales)[:, :, None]  # (N, 16, 1)
    values = (q.astype(np.int8) - np.int8(32)).astype(np.float32)
    return (d * values.reshape(-1, 16, 16)).reshape(-1, 256)


def i2_s(blocks: Codes) -> Codes:
    """Return codes (N, 128) of 32 bytes.

    Byte b has weights b, b + 32, b + 64 and b + 96, the first in the highest bits.
    """
    codes = np.empty((len(blocks), 4, 32), dtype=np.uint8)
    for i in range(4):
        np.right_shift(blocks, np.uint8(6 - 2 * i), out=codes[:, i])
    codes &= np.uint8(3)
    return codes.reshape(-1, 128)


def tq2_0(blocks: Codes) -> Codes:
    """Return codes (N, 256) of two chunks of 32 bytes.

    Byte m of a chunk has weights m, m + 32, m + 64 and m + 96, the first in the lowest bits.
    """
    chunks = blocks[:, :64].reshape(-1, 2, 32)
    codes = np.empty((len(blocks), 2, 4, 32), dtype=np.uint8)
    for i in range(4):
        np.right_shift(chunks, np.uint8(2 * i), out=codes[:, :, i])
    codes &= np.uint8(3)
    return codes.reshape(-1, 256)


def tq1_0(blocks: Codes) -> Codes:
    """Return codes (N, 256) of 32 bytes of 5 trits, 16 of 5 and 4 of 4."""
    return _trits(blocks, (32, 5), (16, 5), (4, 4))


def ptq1_0(blocks: Codes) -> Codes:
    """Return codes (N, 128) of 16 bytes of 5 trits, 8 of 5 and 2 of 4."""
    return _trits(blocks, (16, 5), (8, 5), (2, 4))


def q1_0(blocks: Codes) -> Codes:
    """Return codes (N, 128) of d, 16 bytes; the lowest bit of a byte first."""
    return _bits(blocks[:, 2:])


def q2_0(blocks: Codes) -> Codes:
    """Return codes (N, 4 n) of d, n bytes of four codes; the lowest bits of a byte first."""
    return _FOUR_CODES[blocks[:, 2:]].view(np.uint8)


def stq1_0(blocks: Codes) -> Codes:
    """Return codes (N, 256) of 32 bytes of nibbles, 8 bytes of high bits.

    They index the patterns of 64 groups of four weights. Group g + 16 h has the weights
    g + 16 i + 64 h.
    """
    nibbles = np.stack([blocks[:, :32] & np.uint8(15), blocks[:, :32] >> np.uint8(4)], axis=2)
    index = nibbles.reshape(-1, 64) | _bits(blocks[:, 32:40]) << np.uint8(4)
    groups = _STQ_CODES[index].reshape(-1, 4, 16, 4)
    return np.ascontiguousarray(groups.swapaxes(2, 3)).reshape(-1, 256)


def has_code_3(packed: Codes) -> bool:
    """Whether one of the four 2-bit codes of a byte is 3."""
    return bool((packed & packed >> np.uint8(1) & np.uint8(0x55)).any())


def _trits(blocks: Codes, *parts: tuple[int, int]) -> Codes:
    """Return codes (N, weights) of parts: bytes, and the trits of each.

    A byte is a fraction of 256 in base 3: multiplication by 3^n modulo 256 makes digit n the first.
    Of a part of m bytes, digit n of byte i is weight i + m n.
    """
    weights, start = [], 0
    for n_bytes, digits in parts:
        packed = blocks[:, None, start : start + n_bytes]
        shifted = packed * _POWERS[:digits, None]  # (N, digits, bytes), mod 256
        trits = (shifted.astype(np.uint16) * np.uint16(3)) >> np.uint16(8)
        weights.append(trits.astype(np.uint8).reshape(len(blocks), -1))
        start += n_bytes
    return np.concatenate(weights, axis=1)


def _nibbles(raw: Codes) -> Codes:
    """Return (N, 2 n) of (N, n): the low nibbles of all bytes, then the high ones."""
    return np.concatenate([raw & np.uint8(15), raw >> np.uint8(4)], axis=1)


def _bits(raw: Codes) -> Codes:
    """Return (N, 8 n) of (N, n), the lowest bit of each byte first."""
    return np.unpackbits(raw, axis=1, bitorder="little")


def _sub_blocks(raw: Codes) -> Codes:
    """Return nibbles (N, 8, 32) of (N, 128): 32 low nibbles, 32 high ones, of each 32 bytes."""
    parts: Codes = raw.reshape(-1, 4, 1, 32) >> _BITS[:5:4, None] & np.uint8(15)
    return parts.reshape(-1, 8, 32)


def _scales_k(blocks: Codes) -> tuple[Floats, Floats]:
    """Return scales and minima (N, 8, 1) of the sub-blocks of Q4_K and Q5_K, 6 bits each.

    Bytes 0-3 and 4-7 have the first four of each, and in their upper two bits the upper bits of the
    last four; the nibbles of bytes 8-11 have the lower bits of these.
    """
    raw = blocks[:, 4:16].reshape(-1, 3, 4)
    first, second, rest = raw[:, 0], raw[:, 1], raw[:, 2]
    low, upper = np.uint8(63), np.uint8(48)
    scales: NDArray[np.uint8] = np.concatenate(
        [first & low, rest & np.uint8(15) | first >> np.uint8(2) & upper], axis=1
    )
    minima: NDArray[np.uint8] = np.concatenate(
        [second & low, rest >> np.uint8(4) | second >> np.uint8(2) & upper], axis=1
    )
    d = half(blocks, 0) * scales.astype(np.float32)
    m = half(blocks, 2) * minima.astype(np.float32)
    return d[:, :, None], m[:, :, None]
