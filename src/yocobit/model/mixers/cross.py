"""The cross-decoder's attention: one shared K and V, queries per layer (YOCO, arXiv:2405.05254).

Letters: B batch   T positions   S cached positions   C model width   H query heads   G KV heads
         D head size
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from yocobit.config import ModelConfig
from yocobit.mixers import MIXERS
from yocobit.model.attention import (
    Documents,
    KeysValues,
    Mask,
    Padding,
    append,
    attention,
    attention_and_weights,
    masked_attention,
    masked_attention_and_weights,
    split_heads,
)
from yocobit.model.bitlinear import BitLinear, project
from yocobit.model.block_index import Blocks, visible_positions
from yocobit.model.norm import RMSNorm, sub_norm
from yocobit.model.quantization import fake_quantize
from yocobit.model.rope import Positions, Rope, rope

_SPEC = MIXERS["cross"]
_CACHE_LEVELS = {"float": None, "int8": 127, "int4": 7}


class Shared(NamedTuple):
    """The shared K and V, and the blocks of them that the first cross layer selected."""

    keys: Tensor  # (B, G, S, D)
    values: Tensor
    visible: Tensor | None = None  # (B, G, T, S) bool


class SharedKeysValues(nn.Module):
    """K = rope(W_K RMSNorm(x)), V = W_V RMSNorm(x) of the self-decoder's output x, computed once.

    With `shared_kv` of int8 or int4 they are rounded as a quantised KV cache stores them.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert _SPEC.heads is not None
        C, heads = config.d_model, _SPEC.heads(config)
        self.n_kv_heads = heads.n_kv_heads
        self.rope = Rope.of(config, _SPEC)
        self.levels = _CACHE_LEVELS[config.shared_kv]
        self.norm = RMSNorm(C, eps=config.norm_eps)
        self.k_proj = BitLinear(C, heads.kv_width, config.weights)
        self.v_proj = BitLinear(C, heads.kv_width, config.weights)

    def forward(self, x: Tensor, start: Positions, state: KeysValues | None) -> KeysValues:
        """Append the keys and values of x (B, T, C) to the cached ones."""
        x = self.norm(x)
        k, v = project(x, self.k_proj, self.v_proj)
        k = rope(split_heads(k, self.n_kv_heads), start, *self.rope)
        v = split_heads(v, self.n_kv_heads)
        if self.levels is not None:
            k, v = fake_quantize(k, self.levels), fake_quantize(v, self.levels)
        return append(state, k, v)


class CrossAttention(nn.Module):
    """Causal attention over the shared K and V; the layer has W_q and W_o only.

    The fourth output is the attention weights (B, H, T, S) if `returns_weights` is set, and None
    otherwise.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C = config.d_model
        self.model_config = config
        self.returns_weights = False
        self.n_heads = config.n_heads
        self.rope = Rope.of(config, _SPEC)
        self.q_proj = BitLinear(C, C, config.weights)
        self.sub_norm = sub_norm(config, C)
        self.out_proj = BitLinear(C, C, config.weights)

    def forward(
        self, x: Tensor, start: Positions, shared: Shared, mask: Mask = None
    ) -> tuple[Tensor, Shared, None, Tensor | None]:
        """Attend from x (B, T, C), the last T of the S shared positions."""
        q = rope(split_heads(self.q_proj(x), self.n_heads), start, *self.rope)
        k, v, weights = shared.keys, shared.values, None
        if self.model_config.cross_attention == "full":
            if self.returns_weights:
                y, weights = attention_and_weights(q, k, v, None, mask)
            else:
                y = attention(q, k, v, None, mask)
        else:
            if shared.visible is None:
                shared = shared._replace(visible=self._select(q, k, mask))
            assert shared.visible is not None
            by_head = shared.visible.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
            if self.returns_weights:
                y, weights = masked_attention_and_weights(q, k, v, by_head)
            else:
                y = masked_attention(q, k, v, by_head)
        return self.out_proj(self.sub_norm(y)), shared, None, weights

    def _select(self, q: Tensor, k: Tensor, mask: Mask) -> Tensor:
        """Return the positions that queries (B, H, T, D) attend to, (B, G, T, S) bool."""
        real = mask.real[:, -k.shape[2] :] if isinstance(mask, Padding) else None
        positions = torch.arange(k.shape[2], device=q.device).expand(len(q), -1)
        if isinstance(mask, Documents):
            positions = mask.positions()
        elif real is not None:
            positions = real.cumsum(dim=1) - 1
        return visible_positions(
            q, k, self.model_config, Blocks.of_positions(positions, real), real
        )
