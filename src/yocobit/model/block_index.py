"""Sparse cross attention: selects the blocks of the shared K and V that a token attends to.

A block is BLOCK positions. A token attends to the first block of its document, to the last two
(including its own), and to the top k of the others. For each block, the index stores the maximum
and the minimum of each component of the keys: no score in the block exceeds q+ max + q- min, where
q+ and q- are the positive and negative parts of q (Quest, arXiv:2406.10774). Selection has two
stages. The candidates are the blocks with the largest softmax share of these bounds,
CANDIDATES_PER_BLOCK for each block to select. Of these, the blocks with the largest share of the
attention over candidates and fixed blocks are selected. Shares are summed over the query heads of a
KV head. The first cross layer selects for all cross layers.

Letters: B batch   T positions   S cached positions   H query heads   G KV heads   D head size
         N blocks
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from yocobit.config import BLOCK, CANDIDATES_PER_BLOCK, FIRST_BLOCKS, LAST_BLOCKS, ModelConfig
from yocobit.model.precision import in_float32

_MAX_HALF = 65504.0  # the largest float16: bounds are stored in float16


@dataclass(frozen=True)
class Blocks:
    """The blocks of S positions, numbered along each row across documents."""

    own: Tensor  # (B, S), the block of each position
    first: Tensor  # (B, S), the first block of its document

    @classmethod
    def of_positions(cls, positions: Tensor, real: Tensor | None = None) -> Blocks:
        """Start a block where `positions` (B, S), counted per document, are a multiple of BLOCK.

        Padding, where real (B, S) is False, starts no block; its position is -1 before the first
        token.
        """
        starts = positions % BLOCK == 0
        if real is not None:
            starts = starts & real
        own = (starts.cumsum(dim=1) - 1).clamp(min=0)
        return cls(own, own - positions.clamp(min=0) // BLOCK)


@torch.no_grad()
@in_float32
def visible_positions(
    q: Tensor, k: Tensor, config: ModelConfig, blocks: Blocks, real: Tensor | None = None
) -> Tensor:
    """Return the positions that queries attend to, (B, G, T, S) bool, causal.

    q (B, H, T, D) are the last T of the S positions of k (B, G, S, D); padding, where real (B, S)
    is False, is never attended to.
    """
    T = q.shape[2]
    n_selected = config.cross_positions // BLOCK
    n_blocks = int(blocks.own.max()) + 1
    block = torch.arange(n_blocks, device=q.device)  # (N,)
    own = blocks.own[:, None, -T:, None]  # (B, 1, T, 1)
    first = blocks.first[:, None, -T:, None]
    selected = (block == first) | (block <= own) & (block > own - LAST_BLOCKS)
    n_best = n_selected - FIRST_BLOCKS - LAST_BLOCKS
    selected = selected & (block >= first)
    others = (block >= first + FIRST_BLOCKS) & (block <= own - LAST_BLOCKS)
    bounds = _bound_shares(q, k, blocks, n_blocks, real, (block >= first) & (block < own))
    candidates = _top(bounds, others, CANDIDATES_PER_BLOCK * n_best)
    visible = _positions_of(selected | candidates, blocks, T, real)
    shares = _attention_shares(q, k, blocks, n_blocks, visible)
    selected = selected | _top(shares, candidates, n_best)
    return _positions_of(selected.expand(-1, k.shape[1], -1, -1), blocks, T, real)


def _positions_of(selected: Tensor, blocks: Blocks, T: int, real: Tensor | None) -> Tensor:
    """Return the positions (B, G, T, S) of blocks (B, G, T, N), up to that of the query."""
    G, S = selected.shape[1], blocks.own.shape[1]
    order = torch.arange(S, device=selected.device)
    own = order[S - T :, None]
    visible = selected.gather(-1, _at(blocks, G, T)) & (order <= own)
    if real is None:
        return visible
    # Padding attends to itself: softmax over an empty set is NaN.
    return visible & real[:, None, None] | (order == own)


def _at(blocks: Blocks, G: int, T: int) -> Tensor:
    """Return the block of each position for heads and queries, (B, G, T, S)."""
    return blocks.own[:, None, None].expand(-1, G, T, -1)


def _top(shares: Tensor, eligible: Tensor, n: int) -> Tensor:
    """Return the n eligible blocks with the largest shares, or all of them, (B, G, T, N) bool."""
    ranked = shares.masked_fill(~eligible, -1.0).sort(dim=-1, descending=True, stable=True)
    best = torch.zeros_like(shares, dtype=torch.bool).scatter(-1, ranked.indices[..., :n], True)
    return best & eligible


def _attention_shares(
    q: Tensor, k: Tensor, blocks: Blocks, n_blocks: int, visible: Tensor
) -> Tensor:
    """Return the share of each block in the attention over visible positions, (B, G, T, N)."""
    B, G, T, _ = visible.shape
    shares = q.new_zeros(B, G, T, n_blocks)
    for queries in q.unflatten(1, (G, -1)).unbind(2):  # one head of each group at a time
        scores = queries @ k.mT * k.shape[-1] ** -0.5  # (B, G, T, S)
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
        shares = shares.scatter_add(-1, _at(blocks, G, T), scores.softmax(dim=-1))
    return shares


def _bound_shares(
    q: Tensor, k: Tensor, blocks: Blocks, n_blocks: int, real: Tensor | None, eligible: Tensor
) -> Tensor:
    """Return the share of each block in the softmax of Quest bounds of eligible blocks,
    (B, G, T, N).
    """
    B, G, _, D = k.shape
    at = blocks.own[:, None, :, None].expand(-1, G, -1, D)
    bounds = []
    for reduction, start in (("amax", -_MAX_HALF), ("amin", _MAX_HALF)):
        keys = k.clamp(-_MAX_HALF, _MAX_HALF)
        if real is not None:
            keys = keys.masked_fill(~real[:, None, :, None], start)
        bound = k.new_full((B, G, n_blocks, D), start)
        bound = bound.scatter_reduce(2, at, keys, reduction)
        bounds.append(bound.half().to(q.dtype))
    queries = torch.cat((q.clamp(min=0), q.clamp(max=0)), dim=-1).unflatten(1, (G, -1))
    scores = queries @ torch.cat(bounds, dim=-1)[:, :, None].mT * D**-0.5  # (B, G, H / G, T, N)
    lowest = torch.finfo(scores.dtype).min
    scores = scores.masked_fill(~eligible[:, :, None], lowest)
    return scores.softmax(dim=-1).sum(dim=2)
