"""The whole model, top down: embedding, self-decoder, shared K/V, cross-decoder, head.

Letters: B batch   T positions   C model width   F feed-forward width   V vocabulary   L layers
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from yocobit.config import CROSS_DECODER, ModelConfig
from yocobit.model.bitlinear import BitLinear, project, sign
from yocobit.model.mixers import (
    CrossAttention,
    Documents,
    GatedMemoryUnit,
    GatedRetention,
    KeysValues,
    Padding,
    SelfAttention,
    Shared,
    SharedKeysValues,
    Unseen,
    sub_norm,
)
from yocobit.model.norm import RMSNorm, gated_norm
from yocobit.model.rope import Positions


@dataclass
class Cache:
    """What positions leave for later ones: a state per self-decoder layer, and the shared K/V."""

    position: int = 0
    layers: list[Any] = field(default_factory=list)
    shared: KeysValues | None = None


class FeedForward(nn.Module):
    """SwiGLU, its squared-ReLU sibling (arXiv:2504.12285), or linear-sign-linear (BitNet b1)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C, F_ = config.d_model, config.d_ff
        self.kind = config.ffn
        self.eps = config.norm_eps
        if self.kind != "sign":
            self.gate_proj = BitLinear(C, F_, config.weights)
        self.up_proj = BitLinear(C, F_, config.weights)
        # What sign() returns needs no norm: it is already -1 or +1.
        self.sub_norm = nn.Identity() if self.kind == "sign" else sub_norm(config, F_)
        self.down_proj = BitLinear(F_, C, config.weights)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, T, C) to (B, T, C)."""
        if self.kind == "sign":
            return self.down_proj(sign(self.up_proj(x)))
        gate, up = project(x, self.gate_proj, self.up_proj)
        if self.kind == "swiglu":
            return self.down_proj(gated_norm(gate, up, self.sub_norm, self.eps))
        return self.down_proj(self.sub_norm(F.relu(gate).square() * up))


class Block(nn.Module):
    """x += Mixer(RMSNorm(x)); x += FeedForward(RMSNorm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        kind = config.layers[layer]
        self.is_cross = kind in CROSS_DECODER
        gives_memory = "gmu" in config.layers and layer == config.n_self_layers - 1
        self.mixer_norm = RMSNorm(config.d_model, eps=config.norm_eps)
        self.mixer: nn.Module
        if kind == "retention":
            self.mixer = GatedRetention(config, gives_memory)
        elif kind == "window":
            self.mixer = SelfAttention(
                config,
                config.n_self_heads,
                config.n_self_kv_heads,
                config.window_rope,
                config.window,
                gives_memory,
            )
        elif kind == "full":
            self.mixer = SelfAttention(
                config, config.n_heads, config.n_kv_heads, config.full_rope, None, gives_memory
            )
        elif kind == "cross":
            self.mixer = CrossAttention(config)
        else:
            self.mixer = GatedMemoryUnit(config)
        self.ffn_norm = RMSNorm(config.d_model, eps=config.norm_eps)
        self.ffn = FeedForward(config)

    def forward(
        self, x: Tensor, start: Positions, state: Any, unseen: Unseen = None
    ) -> tuple[Tensor, Any, Tensor | None]:
        """Map x (B, T, C) to (B, T, C); return it, the next state, and the memory (B, T, C) if the
        mixer gives one. A gated memory unit has the memory as its state.
        """
        memory = None
        if self.is_cross:
            y, state = self.mixer(self.mixer_norm(x), start, state, unseen)
        else:
            y, state, memory = self.mixer(self.mixer_norm(x), start, state, unseen)
        x = x + y
        return x + self.ffn(self.ffn_norm(x)), state, memory


class Decoder(nn.Module):
    """A decoder-decoder language model (YOCO, arXiv:2405.05254), or a plain one, by its config."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Block(config, i) for i in range(len(config.layers)))
        self.shared_kv = SharedKeysValues(config) if config.has_cross_decoder else None
        self.norm = RMSNorm(config.d_model, eps=config.norm_eps)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.recompute = False  # what a block computed, in its backward pass instead of storing it
        self._initialize()

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, V) of the token after each of tokens (B, T)."""
        return self.head(self.hidden(tokens))

    def hidden(self, tokens: Tensor, resets: Tensor | None = None) -> Tensor:
        """Return what the head reads, (B, T, C).

        A position where resets (B, T) is True sees nothing before it, as the first of a document.
        """
        documents = None if resets is None else Documents.of(resets)
        x, memory = self._self_decode(tokens, cache := Cache(), 0, documents)
        return self._cross_decode(x, memory, cache, 0, documents)

    def extend(
        self,
        tokens: Tensor,
        cache: Cache,
        real: Tensor | None = None,
        n_last: int | None = None,
    ) -> Tensor:
        """Take in tokens (B, T); return what the head reads of the last `n_last`, else of all.

        Where real (B, S) is False, of the cached positions and of tokens, there is padding: it has
        no position, and the others see nothing of it. The cross-decoder runs for `n_last` tokens
        only; the result is (B, n_last, C).
        """
        T = tokens.shape[1]
        start: Positions = cache.position if real is None else (real.cumsum(dim=1) - 1)[:, -T:]
        padding = None if real is None else Padding(real)
        x, memory = self._self_decode(tokens, cache, start, padding)
        if n_last is not None and n_last < T:
            x, memory = x[:, -n_last:], None if memory is None else memory[:, -n_last:]
            start = start[:, -n_last:] if isinstance(start, Tensor) else start + T - n_last
        return self._cross_decode(x, memory, cache, start, padding)

    def prefill(self, tokens: Tensor, cache: Cache) -> None:
        """Take in tokens (B, T) without their logits: the cross-decoder does not run at all."""
        self._self_decode(tokens, cache, cache.position)

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Take in tokens (B, T); return their logits (B, T, V)."""
        return self.head(self.extend(tokens, cache))

    def n_parameters(self, embedding: bool = True) -> int:
        """Count parameters, with or without embedding and head."""
        skipped = () if embedding else (self.embedding.weight, self.head.weight)
        return sum(p.numel() for p in self.parameters() if all(p is not s for s in skipped))

    def _self_decode(
        self, tokens: Tensor, cache: Cache, start: Positions, unseen: Unseen = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return x (B, T, C) and, if there are gated memory units, what they read (B, T, C)."""
        if not cache.layers:
            cache.layers = [None] * self.config.n_self_layers
        x = self.embedding(tokens)  # (B, T, C)
        if self.config.scale_embedding:
            x = x * self.config.d_model**0.5
        memory = None
        for i in range(self.config.n_self_layers):
            x, cache.layers[i], memory = self._block(i, x, start, cache.layers[i], unseen)
        if self.shared_kv is not None:
            cache.shared = self.shared_kv(x, start, cache.shared)
        cache.position += tokens.shape[1]
        return x, memory

    def _cross_decode(
        self,
        x: Tensor,
        memory: Tensor | None,
        cache: Cache,
        start: Positions,
        unseen: Unseen = None,
    ) -> Tensor:
        shared = None if cache.shared is None else Shared(*cache.shared)
        for i in range(self.config.n_self_layers, len(self.layers)):
            if self.config.layers[i] == "gmu":
                x, *_ = self._block(i, x, start, memory, unseen)
            else:
                x, shared, _ = self._block(i, x, start, shared, unseen)
        return self.norm(x)

    def _block(
        self, i: int, x: Tensor, start: Positions, state: Any, unseen: Unseen
    ) -> tuple[Tensor, Any, Tensor | None]:
        if not (self.recompute and torch.is_grad_enabled()):
            return self.layers[i](x, start, state, unseen)
        # The state of random numbers is kept: adapters in a block may drop out.
        return checkpoint(  # type: ignore[return-value]
            self.layers[i], x, start, state, unseen, use_reentrant=False
        )

    @torch.no_grad()
    def _initialize(self) -> None:
        """Draw weights so that embedding and projections start near unit variance.

        Projections into the residual stream are smaller, by the number of terms it will sum.
        """
        for name, parameter in self.named_parameters():
            if parameter.is_meta or parameter.ndim < 2:
                continue
            std: float = parameter.shape[1] ** -0.5
            if name.endswith(("out_proj.weight", "down_proj.weight")):
                std *= (2 * len(self.layers)) ** -0.5
            nn.init.normal_(parameter, std=std)
