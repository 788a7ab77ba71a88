"""Causal softmax attention with grouped KV heads, and the masks of packed and padded batches.

Letters: B batch   T positions   S cached positions   C model width   H query heads   G KV heads
         D head size
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yocobit.config import ModelConfig
from yocobit.mixers import MixerSpec
from yocobit.model.bitlinear import BitLinear, project
from yocobit.model.norm import sub_norm
from yocobit.model.rope import Positions, rope

KeysValues = tuple[Tensor, Tensor]  # each (B, G, S, D)


@dataclass(frozen=True)
class Documents:
    """Documents packed end to end: a token attends to its own document only."""

    resets: Tensor  # (B, T) bool, True at first positions
    lengths: list[list[int]]  # of the documents of each row; each row's sum is T

    @classmethod
    def of(cls, resets: Tensor) -> Documents | None:
        """Return the documents that start where resets (B, T) is True; None for one per row."""
        if not resets[:, 1:].any():
            return None
        lengths = []
        for row in resets[:, 1:]:
            cuts = [0, *(row.nonzero()[:, 0] + 1).tolist(), resets.shape[1]]
            lengths.append([end - start for start, end in pairwise(cuts)])
        return cls(resets, lengths)


@dataclass(frozen=True)
class Padding:
    """Padding tokens: no token attends to them, and they do not change states."""

    real: Tensor  # (B, S) bool, False at padding, for cached and new positions


Mask = Documents | Padding | None  # restricts causal attention further


class SelfAttention(nn.Module):
    """Causal attention over the layer's own K and V, of all positions or the last `window`.

    The state holds K and V of the positions that later queries attend to.
    """

    def __init__(
        self, config: ModelConfig, spec: MixerSpec, window: int | None, returns_memory: bool
    ) -> None:
        super().__init__()
        assert spec.heads is not None
        C, heads = config.d_model, spec.heads(config)
        self.returns_memory = returns_memory
        self.n_heads, self.n_kv_heads = heads.n_heads, heads.n_kv_heads
        self.rope = spec.rope(config)
        self.theta = config.rope_theta
        self.window = window
        self.q_proj = BitLinear(C, C, config.weights)
        self.k_proj = BitLinear(C, heads.kv_width, config.weights)
        self.v_proj = BitLinear(C, heads.kv_width, config.weights)
        self.sub_norm = sub_norm(config, C)
        self.out_proj = BitLinear(C, C, config.weights)

    def forward(
        self, x: Tensor, start: Positions, state: KeysValues | None, mask: Mask = None
    ) -> tuple[Tensor, KeysValues, Tensor | None]:
        q, k, v = project(x, self.q_proj, self.k_proj, self.v_proj)
        q = rope(split_heads(q, self.n_heads), start, self.rope, self.theta)
        k = rope(split_heads(k, self.n_kv_heads), start, self.rope, self.theta)
        k, v = append(state, k, split_heads(v, self.n_kv_heads))
        y = attention(q, k, v, self.window, mask)
        if self.window is not None:
            kept = min(self.window - 1, k.shape[2])
            k, v = (cached[:, :, cached.shape[2] - kept :] for cached in (k, v))
        return self.out_proj(self.sub_norm(y)), (k, v), y if self.returns_memory else None


def attention(q: Tensor, k: Tensor, v: Tensor, window: int | None, mask: Mask = None) -> Tensor:
    """Causal softmax attention; q are the last T of the S positions of k and v.

    q (B, H, T, D), k and v (B, G, S, D) with G dividing H; returns (B, T, H * D). A query attends
    to itself and, with `window` W, to the W - 1 positions before it, as far as `mask` allows.
    """
    if isinstance(mask, Documents):
        return _attention_by_document(q, k, v, window, mask)
    T, S = q.shape[2], k.shape[2]
    if T == S and mask is None and (window is None or window >= T):
        y = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
        )
        return y.transpose(1, 2).flatten(2)
    query = torch.arange(S - T, S, device=q.device)[:, None]
    key = torch.arange(S, device=q.device)
    visible = key <= query
    if window is not None:
        visible &= key > query - window
    if mask is not None:
        # Padding attends to itself: softmax over an empty set is NaN.
        visible = visible & mask.real[:, None, None, -S:] | (key == query)
    return masked_attention(q, k, v, visible)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Softmax attention of q (B, H, T, D) over k and v (B, G, S, D) where visible is True.

    visible (T, S) or (B, 1 or H, T, S) bool; returns (B, T, H * D).
    """
    y = F.scaled_dot_product_attention(
        q, k, v, attn_mask=visible, enable_gqa=q.shape[1] != k.shape[1]
    )
    return y.transpose(1, 2).flatten(2)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # lengths differ between batches
def _attention_by_document(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, documents: Documents
) -> Tensor:
    rows = []
    # unbind and split, not slices: the gradient of a slice is as large as the whole tensor.
    for lengths, *row in zip(documents.lengths, q.unbind(), k.unbind(), v.unbind(), strict=True):
        parts = zip(*(x[None].split(lengths, dim=2) for x in row), strict=True)
        rows.append(torch.cat([attention(q, k, v, window) for q, k, v in parts], dim=1))
    return torch.cat(rows)


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """Split x (B, T, H * D) into (B, H, T, D)."""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def append(state: KeysValues | None, k: Tensor, v: Tensor) -> KeysValues:
    """Return the cached keys and values followed by k and v (B, G, T, D)."""
    if state is None:
        return k, v
    return torch.cat((state[0], k), dim=2), torch.cat((state[1], v), dim=2)
