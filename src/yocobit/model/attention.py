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
from yocobit.model.bitlinear import project, projection
from yocobit.model.norm import RMSNorm, sub_norm
from yocobit.model.precision import widened
from yocobit.model.rope import Positions, Rope, rope

KeysValues = tuple[Tensor, Tensor]  # each (B, G, S, D)


@dataclass(frozen=True)
class Documents:
    """Documents packed end to end: a token attends to its own document only."""

    resets: Tensor  # (B, T) bool, True at first positions
    # Document lengths of each row, which add up to T; None in a trace, where values are unknown.
    lengths: list[list[int]] | None

    @classmethod
    def of(cls, resets: Tensor) -> Documents | None:
        """Return the documents that start where resets (B, T) is True; None for one per row."""
        if torch.compiler.is_exporting():
            return cls(resets, None)
        if not resets[:, 1:].any():
            return None
        lengths = []
        for row in resets[:, 1:]:
            cuts = [0, *(row.nonzero()[:, 0] + 1).tolist(), resets.shape[1]]
            lengths.append([end - start for start, end in pairwise(cuts)])
        return cls(resets, lengths)

    def positions(self) -> Tensor:
        """Return the position of each token in its document, (B, T)."""
        positions = torch.arange(self.resets.shape[1], device=self.resets.device)
        positions = positions.expand(len(self.resets), -1)
        return positions - torch.where(self.resets, positions, 0).cummax(dim=1).values


@dataclass(frozen=True)
class Padding:
    """Padding tokens: no token attends to them, they have no position, and states ignore them."""

    real: Tensor  # (B, S) bool, False at padding, for cached and new positions

    def of_window(self, n_cached: int, n_new: int) -> Padding:
        """Return the padding of a window's cached and new positions.

        The cache holds the last `n_cached` real positions of each row, after padding if fewer.
        """
        past = self.real.shape[1] - n_new
        n_real = self.real[:, :past].sum(dim=1, keepdim=True)
        cached = torch.arange(n_cached, device=self.real.device) >= n_cached - n_real
        return Padding(torch.cat((cached, self.real[:, past:]), dim=1))

    def to_front(self, x: Tensor) -> Tensor:
        """Move the padding of x (B, G, S, D) to the front of each row."""
        order = self.real.to(torch.uint8).argsort(dim=1, stable=True)
        return x.gather(2, order[:, None, :, None].expand_as(x))


Mask = Documents | Padding | None  # restricts causal attention further


class SelfAttention(nn.Module):
    """Causal attention over the layer's own K and V, of all positions or the last `window`.

    The state holds K and V of the positions that later queries attend to. The fourth output is the
    attention weights (B, H, T, S) if `returns_weights` is set, and None otherwise.
    """

    def __init__(
        self, config: ModelConfig, spec: MixerSpec, window: int | None, returns_memory: bool
    ) -> None:
        super().__init__()
        assert spec.heads is not None
        C, heads = config.d_model, spec.heads(config)
        self.returns_memory = returns_memory
        self.returns_weights = False
        self.n_heads, self.n_kv_heads = heads.n_heads, heads.n_kv_heads
        self.rope = Rope.of(config, spec)
        self.window = window
        self.scale = config.attention_scale
        self.normalizes_after_rope = config.qk_norm == "after_rope"
        self.q_proj = projection(config, C, heads.width, config.qkv_bias)
        self.k_proj = projection(config, C, heads.kv_width, config.qkv_bias)
        self.v_proj = projection(config, C, heads.kv_width, config.qkv_bias)
        has_norm, D = config.qk_norm != "none", heads.head_dim
        self.q_norm = RMSNorm(D, eps=config.norm_eps) if has_norm else nn.Identity()
        self.k_norm = RMSNorm(D, eps=config.norm_eps) if has_norm else nn.Identity()
        self.sub_norm = sub_norm(config, heads.width)
        self.out_proj = projection(config, heads.width, C)

    def forward(
        self, x: Tensor, start: Positions, state: KeysValues | None, mask: Mask = None
    ) -> tuple[Tensor, KeysValues, Tensor | None, Tensor | None]:
        q, k, v = project(x, self.q_proj, self.k_proj, self.v_proj)
        q = self._rotate(split_heads(q, self.n_heads), self.q_norm, start)
        k = self._rotate(split_heads(k, self.n_kv_heads), self.k_norm, start)
        k, v = append(state, k, split_heads(v, self.n_kv_heads))
        if self.window is not None and isinstance(mask, Padding):
            mask = mask.of_window(k.shape[2] - x.shape[1], x.shape[1])
        weights = None
        if self.returns_weights:
            y, weights = attention_and_weights(q, k, v, self.window, mask, self.scale)
        else:
            y = attention(q, k, v, self.window, mask, self.scale)
        if self.window is not None:
            k, v = self._windows(k, v, mask, x.shape[1])
        return self.out_proj(self.sub_norm(y)), (k, v), y if self.returns_memory else None, weights

    def _rotate(self, x: Tensor, norm: nn.Module, start: Positions) -> Tensor:
        """Return queries or keys (B, H, T, D), normalised and rotated."""
        if self.normalizes_after_rope:
            rotated: Tensor = norm(rope(x, start, *self.rope))
            return rotated
        return rope(norm(x), start, *self.rope)

    def _windows(self, k: Tensor, v: Tensor, mask: Mask, n_new: int) -> KeysValues:
        """Return the last real positions of k and v (B, G, S, D) that the next query attends to."""
        assert self.window is not None
        is_exporting = torch.compiler.is_exporting()
        if isinstance(mask, Padding) and (is_exporting or not mask.real[:, -n_new:].all()):
            k, v = mask.to_front(k), mask.to_front(v)
        if is_exporting:
            return k, v  # all: slices would limit the lengths that the graph accepts
        first = max(k.shape[2] - (self.window - 1), 0)
        return k[:, :, first:], v[:, :, first:]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None,
    mask: Mask = None,
    scale: float | None = None,
) -> Tensor:
    """Causal softmax attention; q are the last T of the S positions of k and v.

    q (B, H, T, D), k and v (B, G, S, D) with G dividing H; returns (B, T, H * D). A query attends
    to itself and, with `window` W, to the W - 1 positions before it, as far as `mask` allows.
    `scale` multiplies q k; None: D^-1/2.
    """
    if isinstance(mask, Documents) and mask.lengths is not None:
        return _attention_by_document(q, k, v, window, mask.lengths, scale)
    T, S = q.shape[2], k.shape[2]
    # Not while exporting: a comparison would limit the lengths that the graph accepts.
    is_wide = window is None or (not torch.compiler.is_exporting() and window >= T)
    if T == S and mask is None and is_wide:
        y = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        return y.transpose(1, 2).flatten(2)
    return masked_attention(q, k, v, _visible(q, k, window, mask), scale)


def attention_and_weights(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None,
    mask: Mask = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the result of `attention` and the attention weights (B, H, T, S)."""
    return masked_attention_and_weights(q, k, v, _visible(q, k, window, mask), scale)


def _visible(q: Tensor, k: Tensor, window: int | None, mask: Mask) -> Tensor:
    """Return whether queries attend to keys, (T, S) or (B, 1, T, S) bool."""
    T, S = q.shape[2], k.shape[2]
    key = torch.arange(S, device=q.device)
    query = key[S - T :, None]
    visible = key <= query
    if not isinstance(mask, Padding):
        if window is not None:
            visible &= key > query - window
        if mask is not None:
            document = mask.resets.cumsum(dim=1)
            visible = visible & (document[:, None, :, None] == document[:, None, None])
        return visible
    real = mask.real[:, -S:]
    if window is not None:
        position = real.cumsum(dim=1)  # without padding
        visible = visible & (position[:, None] > position[:, S - T :, None] - window)
        visible = visible[:, None]
    # Padding attends to itself: softmax over an empty set is NaN.
    return visible & real[:, None, None] | (key == query)


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float | None = None
) -> Tensor:
    """Softmax attention of q (B, H, T, D) over k and v (B, G, S, D) where visible is True.

    visible (T, S) or (B, 1 or H, T, S) bool; returns (B, T, H * D).
    """
    y = F.scaled_dot_product_attention(
        q, k, v, attn_mask=visible, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return y.transpose(1, 2).flatten(2)


def masked_attention_and_weights(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return the result of `masked_attention` and the attention weights (B, H, T, S)."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = widened(q @ k.mT * scale)  # (B, H, T, S)
    weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1).to(v.dtype)
    return (weights @ v).transpose(1, 2).flatten(2), weights


@torch.compiler.disable  # type: ignore[untyped-decorator]  # lengths differ between batches
def _attention_by_document(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None,
    lengths_of_rows: list[list[int]],
    scale: float | None,
) -> Tensor:
    rows = []
    # unbind and split, not slices: the gradient of a slice is as large as the whole tensor.
    for lengths, *row in zip(lengths_of_rows, q.unbind(), k.unbind(), v.unbind(), strict=True):
        parts = zip(*(x[None].split(lengths, dim=2) for x in row), strict=True)
        ys = [attention(q, k, v, window, scale=scale) for q, k, v in parts]
        rows.append(torch.cat(ys, dim=1))
    return torch.cat(rows)


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """Split x (B, T, H * D) into (B, H, T, D)."""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def append(state: KeysValues | None, k: Tensor, v: Tensor) -> KeysValues:
    """Return the cached keys and values followed by k and v (B, G, T, D)."""
    if state is None:
        return k, v
    return torch.cat((state[0], k), dim=2), torch.cat((state[1], v), dim=2)
