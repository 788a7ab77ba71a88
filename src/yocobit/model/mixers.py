"""Token mixers: the part of a block that moves information between positions.

Every mixer maps x (B, T, C), whose positions `start` gives, and the state left by the positions
before it to y (B, T, C) and the next state; `None` is the state before position 0. One call over
all positions equals any split into calls. A mixer of the self-decoder that `gives_memory` returns
as a third what it mixed, (B, T, C) before gate and output projection, for gated memory units.

Letters: B batch   T positions   S cached positions   C model width   H heads   G K/V heads
         D head size
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yocobit.config import ModelConfig, RopeKind
from yocobit.model import retention
from yocobit.model.bitlinear import BitLinear, project
from yocobit.model.block_choice import Blocks, seen_positions
from yocobit.model.norm import RMSNorm, gated_norm, head_norm
from yocobit.model.quantization import fake_quantize
from yocobit.model.rope import Positions, rope

KeysValues = tuple[Tensor, Tensor]  # each (B, G, S, D)


class Shared(NamedTuple):
    """The keys and values of the cross-decoder, and what of them a query attends to."""

    keys: Tensor  # (B, G, S, D)
    values: Tensor
    seen: Tensor | None = None  # (B, G, T, S) bool, once the first cross layer has chosen


@dataclass(frozen=True)
class Documents:
    """The documents that lie end to end in a batch: none sees anything of those before it."""

    resets: Tensor  # (B, T) bool, True at first positions
    lengths: list[list[int]]  # of the documents of each row; each row's sum is T

    @classmethod
    def of(cls, resets: Tensor) -> Documents | None:
        """Return the documents that start where resets (B, T) is True, None if there is no cut."""
        if not resets[:, 1:].any():
            return None
        lengths = []
        for row in resets[:, 1:]:
            cuts = [0, *(row.nonzero()[:, 0] + 1).tolist(), resets.shape[1]]
            lengths.append([end - begin for begin, end in pairwise(cuts)])
        return cls(resets, lengths)


@dataclass(frozen=True)
class Padding:
    """Tokens that are of no text: the others see nothing of them, and they keep no state."""

    real: Tensor  # (B, S) bool, False where padding; S counts the positions before x too


# What a token does not see, of those before it.
Unseen = Documents | Padding | None


class GatedRetention(nn.Module):
    """Retention whose decay each token chooses for itself (YOCO, arXiv:2405.05254).

    The state is one D x D matrix per head, (B, H, D, D), whatever the length of the text.
    """

    def __init__(self, config: ModelConfig, gives_memory: bool = False) -> None:
        super().__init__()
        C = config.d_model
        self.gives_memory = gives_memory
        self.n_heads = config.n_self_heads
        self.rope: RopeKind = config.retention_rope
        self.theta = config.rope_theta
        self.eps = config.norm_eps
        self.q_proj = BitLinear(C, C, config.weights)
        self.k_proj = BitLinear(C, C, config.weights)
        self.v_proj = BitLinear(C, C, config.weights)
        self.g_proj = BitLinear(C, C, config.weights)
        # Not quantised: H outputs only, and they decide how far the layer remembers.
        self.decay_proj = nn.Linear(C, self.n_heads, bias=False)
        self.sub_norm = sub_norm(config, C)
        self.out_proj = BitLinear(C, C, config.weights)

    def forward(
        self, x: Tensor, start: Positions, state: Tensor | None, unseen: Unseen = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        q, k, v, g = project(x, self.q_proj, self.k_proj, self.v_proj, self.g_proj)
        q = rope(_heads(q, self.n_heads), start, self.rope, self.theta)
        k = rope(_heads(k, self.n_heads), start, self.rope, self.theta)
        v = _heads(v, self.n_heads)
        log_decay = F.logsigmoid(self.decay_proj(x)).mT / 16  # (B, H, T)
        if isinstance(unseen, Documents):
            log_decay = log_decay.masked_fill(unseen.resets[:, None], -torch.inf)
        elif unseen is not None:
            padding = ~unseen.real[:, None, -x.shape[1] :]  # (B, 1, T)
            v = v.masked_fill(padding[..., None], 0)
            log_decay = log_decay.masked_fill(padding, 0)
        form = retention.recurrent if x.shape[1] == 1 else retention.chunkwise
        y, state = form(q, k, v, log_decay, state)  # (B, H, T, D)
        memory = head_norm(y, self.eps) if self.gives_memory else None
        y = y if memory is None else memory
        return self.out_proj(gated_norm(g, y, self.sub_norm, self.eps)), state, memory


class SelfAttention(nn.Module):
    """Causal attention with keys and values of its own; `window` positions or, if None, all.

    The state is the keys and values that later positions can still see.
    """

    def __init__(
        self,
        config: ModelConfig,
        n_heads: int,
        n_kv_heads: int,
        rope: RopeKind,
        window: int | None,
        gives_memory: bool = False,
    ) -> None:
        super().__init__()
        C, D = config.d_model, config.d_model // n_heads
        self.gives_memory = gives_memory
        self.n_heads, self.n_kv_heads = n_heads, n_kv_heads
        self.rope: RopeKind = rope
        self.theta = config.rope_theta
        self.window = window
        self.q_proj = BitLinear(C, C, config.weights)
        self.k_proj = BitLinear(C, n_kv_heads * D, config.weights)
        self.v_proj = BitLinear(C, n_kv_heads * D, config.weights)
        self.sub_norm = sub_norm(config, C)
        self.out_proj = BitLinear(C, C, config.weights)

    def forward(
        self, x: Tensor, start: Positions, state: KeysValues | None, unseen: Unseen = None
    ) -> tuple[Tensor, KeysValues, Tensor | None]:
        q, k, v = project(x, self.q_proj, self.k_proj, self.v_proj)
        q = rope(_heads(q, self.n_heads), start, self.rope, self.theta)
        k = rope(_heads(k, self.n_kv_heads), start, self.rope, self.theta)
        v = _heads(v, self.n_kv_heads)
        k, v = _append(state, k, v)
        y = attention(q, k, v, self.window, unseen)
        if self.window is not None:
            kept = min(self.window - 1, k.shape[2])
            k, v = (cached[:, :, cached.shape[2] - kept :] for cached in (k, v))
        return self.out_proj(self.sub_norm(y)), (k, v), y if self.gives_memory else None


class SharedKeysValues(nn.Module):
    """The one K and V of the cross-decoder, computed once from the self-decoder's output."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C, D = config.d_model, config.head_dim
        self.n_kv_heads = config.n_kv_heads
        self.rope: RopeKind = config.cross_rope
        self.theta = config.rope_theta
        self.levels = {"float": None, "int8": 127, "int4": 7}[config.shared_kv]
        self.norm = RMSNorm(C, eps=config.norm_eps)
        self.k_proj = BitLinear(C, self.n_kv_heads * D, config.weights)
        self.v_proj = BitLinear(C, self.n_kv_heads * D, config.weights)

    def forward(self, x: Tensor, start: Positions, state: KeysValues | None) -> KeysValues:
        """Append the keys and values of x (B, T, C) to the cached ones."""
        x = self.norm(x)
        k, v = project(x, self.k_proj, self.v_proj)
        k = rope(_heads(k, self.n_kv_heads), start, self.rope, self.theta)
        v = _heads(v, self.n_kv_heads)
        if self.levels is not None:
            k, v = fake_quantize(k, self.levels), fake_quantize(v, self.levels)
        return _append(state, k, v)


class CrossAttention(nn.Module):
    """Causal attention over the shared keys and values; only queries and output are its own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C = config.d_model
        self.config = config
        self.n_heads = config.n_heads
        self.rope: RopeKind = config.cross_rope
        self.theta = config.rope_theta
        self.q_proj = BitLinear(C, C, config.weights)
        self.sub_norm = sub_norm(config, C)
        self.out_proj = BitLinear(C, C, config.weights)

    def forward(
        self, x: Tensor, start: Positions, shared: Shared, unseen: Unseen = None
    ) -> tuple[Tensor, Shared]:
        """Attend from x (B, T, C), the last T of the S shared positions."""
        q = rope(_heads(self.q_proj(x), self.n_heads), start, self.rope, self.theta)
        if self.config.cross_attention == "full":
            y = attention(q, shared.keys, shared.values, None, unseen)
        else:
            if shared.seen is None:
                shared = shared._replace(seen=self._choose(q, shared.keys, unseen))
            y = _attention_where(q, *shared)
        return self.out_proj(self.sub_norm(y)), shared

    def _choose(self, q: Tensor, k: Tensor, unseen: Unseen) -> Tensor:
        """Return what queries (B, H, T, D) attend to, (B, G, T, S) bool."""
        real = unseen.real[:, -k.shape[2] :] if isinstance(unseen, Padding) else None
        positions = torch.arange(k.shape[2], device=q.device).expand(len(q), -1)
        if isinstance(unseen, Documents):
            begins = torch.where(unseen.resets, positions, 0).cummax(dim=1).values
            positions = positions - begins
        elif real is not None:
            positions = real.cumsum(dim=1) - 1
        return seen_positions(q, k, self.config, Blocks.of_positions(positions, real), real)


class GatedMemoryUnit(nn.Module):
    """What the last self-decoder layer mixed, gated anew (SambaY, arXiv:2507.06607).

    y = W_out norm(m * silu(W_g x)), with the norm as the paper's normalised variant if there is
    SubLN. It mixes no positions, so it has no state and reads no cache.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C = config.d_model
        self.eps = config.norm_eps
        self.g_proj = BitLinear(C, C, config.weights)
        self.sub_norm = sub_norm(config, C)
        self.out_proj = BitLinear(C, C, config.weights)

    def forward(
        self, x: Tensor, start: Positions, memory: Tensor, unseen: Unseen = None
    ) -> tuple[Tensor, Tensor]:
        """Gate memory (B, T, C) by x (B, T, C), by position; return the memory, too."""
        y = gated_norm(self.g_proj(x), memory, self.sub_norm, self.eps)
        return self.out_proj(y), memory


def attention(q: Tensor, k: Tensor, v: Tensor, window: int | None, unseen: Unseen = None) -> Tensor:
    """Causal softmax attention; q are the last T of the S positions of k and v.

    q (B, H, T, D), k and v (B, G, S, D) with G dividing H; returns (B, T, H * D). A query sees
    itself and, with `window` W, the W - 1 positions before it, of what is not unseen.
    """
    if isinstance(unseen, Documents):
        return _attention_by_document(q, k, v, window, unseen)
    T, S = q.shape[2], k.shape[2]
    has_groups = q.shape[1] != k.shape[1]
    if T == S and unseen is None and (window is None or window >= T):
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=has_groups)
    else:
        query = torch.arange(S - T, S, device=q.device)[:, None]
        key = torch.arange(S, device=q.device)
        seen = key <= query
        if window is not None:
            seen &= key > query - window
        if unseen is not None:
            # Padding sees itself: softmax over nothing would be NaN.
            seen = seen & unseen.real[:, None, None, -S:] | (key == query)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=has_groups)
    return y.transpose(1, 2).flatten(2)


def _attention_where(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
    has_groups = q.shape[1] != k.shape[1]
    if seen is not None:
        seen = seen.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=has_groups)
    return y.transpose(1, 2).flatten(2)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # other lengths in every batch
def _attention_by_document(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, documents: Documents
) -> Tensor:
    rows = []
    # unbind and split, not slices: the gradient of a slice is as large as the whole.
    for lengths, *row in zip(documents.lengths, q.unbind(), k.unbind(), v.unbind(), strict=True):
        parts = zip(*(x[None].split(lengths, dim=2) for x in row), strict=True)
        rows.append(torch.cat([attention(q, k, v, window) for q, k, v in parts], dim=1))
    return torch.cat(rows)


def sub_norm(config: ModelConfig, size: int) -> nn.Module:
    """Return the RMSNorm before a quantised projection that has none directly before it."""
    return RMSNorm(size, eps=config.norm_eps) if config.sub_norm else nn.Identity()


def _heads(x: Tensor, n_heads: int) -> Tensor:
    """Split x (B, T, H * D) into (B, H, T, D)."""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def _append(state: KeysValues | None, k: Tensor, v: Tensor) -> KeysValues:
    if state is None:
        return k, v
    return torch.cat((state[0], k), dim=2), torch.cat((state[1], v), dim=2)
