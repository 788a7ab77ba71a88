"""The rows of Q and K, per head, for the two kinds of RoPE.

RoPE rotates pairs of values: (2 i, 2 i + 1) if it is interleaved, (i, i + D / 2) in halves. A model
computes the same with either if the rows are reordered.

Letters: D head size
"""

from __future__ import annotations

from yocobit.packing.layout import Array


def in_pairs(rows: Array, head_size: int) -> Array:
    """Order rows for interleaved RoPE: row i + j D / 2 of a head becomes 2 i + j."""
    heads = rows.reshape(-1, 2, head_size // 2, *rows.shape[1:])
    return heads.swapaxes(1, 2).reshape(rows.shape)


def in_halves(rows: Array, head_size: int) -> Array:
    """Invert in_pairs."""
    heads = rows.reshape(-1, head_size // 2, 2, *rows.shape[1:])
    return heads.swapaxes(1, 2).reshape(rows.shape)
