"""Which positions of the shared keys and values a token attends to, where it may not see all.

Positions are taken in blocks of BLOCK. A token sees the first block of its document, the last two,
its own included, and either those before them ("window") or the best of the others ("index"). How
good a block is, is known from the largest and the smallest value of each component of its keys: no
score in it is above q+ max + q- min, where q+ and q- are the positive and negative parts of q
(Quest, arXiv:2406.10774). Blocks with the largest share of the softmax of those bounds, summed over
the query heads of a K/V head, are chosen, once for all cross layers.

Letters: B batch   T positions   S cached positions   H heads   G K/V heads   D head size   N blocks
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from yocobit.config import BLOCK, ModelConfig

_FIRST, _LAST = 1, 2  # blocks that every token sees
_LARGEST_HALF = 65504.0


@dataclass(frozen=True)
class Blocks:
    """The blocks of S positions, counted through each row whatever document they are of."""

    of: Tensor  # (B, S), the block of a position
    first: Tensor  # (B, S), the first block of its document

    @classmethod
    def of_positions(cls, positions: Tensor, real: Tensor | None = None) -> Blocks:
        """Cut rows where `positions` (B, S), counted in each document, are a multiple of BLOCK.

        Where real (B, S) is False there is padding, which begins no block; -1 is before all.
        """
        begins = positions % BLOCK == 0
        if real is not None:
            begins = begins & real
        of = (begins.cumsum(dim=1) - 1).clamp(min=0)
        return cls(of, of - positions.clamp(min=0) // BLOCK)


@torch.no_grad()
def seen_positions(
    q: Tensor, k: Tensor, config: ModelConfig, blocks: Blocks, real: Tensor | None = None
) -> Tensor:
    """Return what the queries attend to, (B, G, T, S) bool; they see nothing after themselves.

    q (B, H, T, D) are the last T of the S positions of k (B, G, S, D); where real (B, S) is False
    there is padding, which nobody sees.
    """
    T, S = q.shape[2], k.shape[2]
    n_chosen = config.cross_positions // BLOCK
    n_blocks = int(blocks.of.max()) + 1
    block = torch.arange(n_blocks, device=q.device)  # (N,)
    own = blocks.of[:, None, -T:, None]  # (B, 1, T, 1)
    first = blocks.first[:, None, -T:, None]
    is_seen = (block == first) | (block <= own) & (block > own - _LAST)
    if config.cross_attention == "window":
        is_seen = is_seen | (block > own - (n_chosen - _FIRST))
        is_seen = is_seen & (block >= first) & (block <= own)
    else:
        share = _shares(q, k, blocks, n_blocks, real, (block >= first) & (block < own))
        is_candidate = (block >= first + _FIRST) & (block <= own - _LAST)
        ranked = share.masked_fill(~is_candidate, -1.0).sort(dim=-1, descending=True, stable=True)
        best = torch.zeros_like(share, dtype=torch.bool).scatter(
            -1, ranked.indices[..., : n_chosen - _FIRST - _LAST], True
        )
        is_seen = is_seen & (block >= first) | best & is_candidate
    is_seen = is_seen.expand(-1, k.shape[1], -1, -1)  # (B, G, T, N)
    at = blocks.of[:, None, None].expand(-1, k.shape[1], T, -1)  # (B, G, T, S)
    order = torch.arange(S, device=q.device)
    seen = is_seen.gather(-1, at) & (order <= order[-T:, None])
    if real is not None:
        # Padding sees itself: softmax over nothing would be NaN.
        seen = seen & real[:, None, None] | (order == order[-T:, None])
    return seen


def _shares(
    q: Tensor, k: Tensor, blocks: Blocks, n_blocks: int, real: Tensor | None, counts: Tensor
) -> Tensor:
    """Return what share of the softmax of bounds each block has, of those that count."""
    B, G, _, D = k.shape
    at = blocks.of[:, None, :, None].expand(-1, G, -1, D)
    bounds = []
    for reduction, start in (("amax", -_LARGEST_HALF), ("amin", _LARGEST_HALF)):
        keys = k.clamp(-_LARGEST_HALF, _LARGEST_HALF)
        if real is not None:
            keys = keys.masked_fill(~real[:, None, :, None], start)
        bound = k.new_full((B, G, n_blocks, D), start)
        bound = bound.scatter_reduce(2, at, keys, reduction)
        bounds.append(bound.half().to(q.dtype))
    queries = torch.cat((q.clamp(min=0), q.clamp(max=0)), dim=-1).unflatten(1, (G, -1))
    scores = queries @ torch.cat(bounds, dim=-1)[:, :, None].mT * D**-0.5  # (B, G, H / G, T, N)
    lowest = torch.finfo(scores.dtype).min
    scores = scores.masked_fill(~counts[:, :, None], lowest)
    return scores.softmax(dim=-1).sum(dim=2)
