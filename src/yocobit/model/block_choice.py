"""Which positions of the shared keys and values a token attends to, where it may not see all.

Positions are taken in blocks of BLOCK. A token sees the first block of its document, the last two,
its own included, and either those before them ("window") or the best of the others ("index"). Of
each block the largest and the smallest value of each component of its keys are known: no score in
it is above q+ max + q- min, where q+ and q- are the positive and negative parts of q (Quest,
arXiv:2406.10774). Some times as many blocks as can be seen are tried: those with the largest share
of the softmax of those bounds. Chosen are those with the largest share of the attention over what
is seen anyway and what is tried. Shares are summed over the query heads of a K/V head, and blocks
chosen once for all cross layers.

Letters: B batch   T positions   S cached positions   H heads   G K/V heads   D head size   N blocks
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from yocobit.config import BLOCK, FIRST_BLOCKS, LAST_BLOCKS, TRIED_BLOCKS, ModelConfig

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
    T = q.shape[2]
    n_chosen = config.cross_positions // BLOCK
    n_blocks = int(blocks.of.max()) + 1
    block = torch.arange(n_blocks, device=q.device)  # (N,)
    own = blocks.of[:, None, -T:, None]  # (B, 1, T, 1)
    first = blocks.first[:, None, -T:, None]
    is_seen = (block == first) | (block <= own) & (block > own - LAST_BLOCKS)
    if config.cross_attention == "window":
        is_seen = is_seen | (block > own - (n_chosen - FIRST_BLOCKS))
        is_seen = is_seen & (block >= first) & (block <= own)
    else:
        n_best = n_chosen - FIRST_BLOCKS - LAST_BLOCKS
        is_seen = is_seen & (block >= first)
        is_other = (block >= first + FIRST_BLOCKS) & (block <= own - LAST_BLOCKS)
        bounds = _shares_of_bounds(q, k, blocks, n_blocks, real, (block >= first) & (block < own))
        is_tried = _best(bounds, is_other, TRIED_BLOCKS * n_best)
        tried = _positions_of(is_seen | is_tried, blocks, T, real)
        shares = _shares_of_attention(q, k, blocks, n_blocks, tried)
        is_seen = is_seen | _best(shares, is_tried, n_best)
    return _positions_of(is_seen.expand(-1, k.shape[1], -1, -1), blocks, T, real)


def _positions_of(is_chosen: Tensor, blocks: Blocks, T: int, real: Tensor | None) -> Tensor:
    """Return the positions (B, G, T, S) of blocks (B, G, T, N), none after the query's own."""
    G, S = is_chosen.shape[1], blocks.of.shape[1]
    order = torch.arange(S, device=is_chosen.device)
    own = order[S - T :, None]
    seen = is_chosen.gather(-1, _at(blocks, G, T)) & (order <= own)
    if real is None:
        return seen
    # Padding sees itself: softmax over nothing would be NaN.
    return seen & real[:, None, None] | (order == own)


def _at(blocks: Blocks, G: int, T: int) -> Tensor:
    """Return the block of each position for heads and queries, (B, G, T, S)."""
    return blocks.of[:, None, None].expand(-1, G, T, -1)


def _best(shares: Tensor, counts: Tensor, n: int) -> Tensor:
    """Say which n blocks (B, G, T, N) have the largest shares of those that count, or all those."""
    ranked = shares.masked_fill(~counts, -1.0).sort(dim=-1, descending=True, stable=True)
    best = torch.zeros_like(shares, dtype=torch.bool).scatter(-1, ranked.indices[..., :n], True)
    return best & counts


def _shares_of_attention(
    q: Tensor, k: Tensor, blocks: Blocks, n_blocks: int, seen: Tensor
) -> Tensor:
    """Return what share of the attention over the seen positions each block has, (B, G, T, N)."""
    B, G, T, _ = seen.shape
    shares = q.new_zeros(B, G, T, n_blocks)
    for queries in q.unflatten(1, (G, -1)).unbind(2):  # one head of each group at a time
        scores = queries @ k.mT * k.shape[-1] ** -0.5  # (B, G, T, S)
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        shares = shares.scatter_add(-1, _at(blocks, G, T), scores.softmax(dim=-1))
    return shares


def _shares_of_bounds(
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
