"""The whole model, top down: embedding, self-decoder, shared K/V, cross-decoder, head.

Letters: B batch   T positions   S cached positions   C model width   V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from yocobit.config import ModelConfig
from yocobit.mixers import MIXERS
from yocobit.model.attention import Documents, KeysValues, Mask, Padding, SelfAttention
from yocobit.model.experts import feed_forward
from yocobit.model.mixers import MIXER_MODULES
from yocobit.model.mixers.cross import Shared, SharedKeysValues
from yocobit.model.norm import RMSNorm
from yocobit.model.quantization import check_trainable
from yocobit.model.rope import NO_ROPE, Positions


@dataclass
class Cache:
    """Per-sequence state: recurrent states and KV caches of the self-decoder; the shared K/V."""

    position: int = 0
    layers: list[Any] = field(default_factory=list)
    shared: KeysValues | None = None


class Block(nn.Module):
    """x += Mixer(RMSNorm(x)); x += FeedForward(RMSNorm(x)).

    With `post_norms`, an RMSNorm precedes each addition; `residual_scale` multiplies its result.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        spec = MIXERS[config.layers[layer]]
        module = MIXER_MODULES[spec.name]
        has_readers = any(MIXERS[name].reads_memory for name in config.layers)
        self.mixer_norm = _norm(config)
        self.mixer: nn.Module
        if spec.decoder == "self":
            self.mixer = module(config, has_readers and layer == config.n_self_layers - 1)
        else:
            self.mixer = module(config)
        if layer in config.nope_layers and isinstance(self.mixer, SelfAttention):
            self.mixer.rope = NO_ROPE
        self.mixer_post_norm = _norm(config, config.post_norms)
        self.ffn_norm = _norm(config)
        self.ffn = feed_forward(config)
        self.ffn_post_norm = _norm(config, config.post_norms)
        self.residual_scale = config.residual_scale

    def forward(
        self, x: Tensor, start: Positions, state: Any, mask: Mask = None
    ) -> tuple[Tensor, Any, Tensor | None]:
        """Map x (B, T, C) to (B, T, C); also return the next state and the memory, if any.

        The state of a mixer that reads the memory is the memory.
        """
        y, state, memory, *_ = self.mixer(self.mixer_norm(x), start, state, mask)
        x = torch.add(x, self.mixer_post_norm(y), alpha=self.residual_scale)
        y = self.ffn_post_norm(self.ffn(self.ffn_norm(x)))
        return torch.add(x, y, alpha=self.residual_scale), state, memory


def _norm(config: ModelConfig, exists: bool = True, eps: float | None = None) -> nn.Module:
    """Return an RMSNorm of the residual stream, or Identity."""
    return RMSNorm(config.d_model, eps=eps or config.norm_eps) if exists else nn.Identity()


class Decoder(nn.Module):
    """A decoder-decoder language model (YOCO, arXiv:2405.05254), or a decoder without cross layers.

    logits = W_head RMSNorm(x), where the blocks transform x = sqrt(C) E[token]; K and V of all
    cross layers are computed once, from the output of the self-decoder. With `head_norm`, W_head
    has an RMSNorm of its own; `logit_scale` multiplies the logits.
    """

    head_norm: nn.Module

    def __init__(self, config: ModelConfig, block: type[Block] = Block) -> None:
        """Create a model with initial weights; `block` is the class of its blocks."""
        super().__init__()
        check_trainable(config.weights)
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(block(config, i) for i in range(len(config.layers)))
        self.shared_kv = SharedKeysValues(config) if config.has_cross_decoder else None
        self.norm = _norm(config)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.use_head_norm(_norm(config, config.head_norm, config.projection_norm_eps))
        if config.head_norm:
            self.head.norm = self.head_norm
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.recompute = False  # activation checkpointing: each block runs again in backward
        self._initialize()

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, V) of the token after each of tokens (B, T)."""
        return self.logits(self.hidden(tokens))

    def use_head_norm(self, norm: nn.Module) -> None:
        """Set the norm before the head."""
        # Not a submodule here but of the head, which adapters may replace.
        object.__setattr__(self, "head_norm", norm)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (..., V) of inputs of the head (..., C)."""
        logits: Tensor = self.head(hidden)
        scale = self.config.logit_scale
        return logits if scale == 1 else logits * scale

    def hidden(self, tokens: Tensor, resets: Tensor | None = None) -> Tensor:
        """Return the input of the head, (B, T, C), for tokens (B, T) or their embeddings (B, T, C).

        resets (B, T) is True at the first position of each document. No position depends on earlier
        documents.
        """
        documents = None if resets is None else Documents.of(resets)
        start: Positions = 0
        if documents is not None and self.config.qk_norm == "after_rope":
            start = documents.positions()  # scores depend on more than distances
        x, memory = self._self_decode(tokens, cache := Cache(), start, documents)
        return self._cross_decode(x, memory, cache, start, documents)

    def extend(
        self,
        tokens: Tensor,
        cache: Cache,
        real: Tensor | None = None,
        n_last: int | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Consume tokens (B, T) or their embeddings (B, T, C), before scaling by sqrt(C).

        Returns the input of the head for the last `n_last` tokens, (B, n_last, C), or for all; the
        cross-decoder runs for these only. real (B, S), over cached and new positions, is False at
        padding, which has no position and is never attended to. rope uses `positions` (B, T), by
        default the number of earlier tokens.
        """
        T = tokens.shape[1]
        start: Positions = cache.position if real is None else (real.cumsum(dim=1) - 1)[:, -T:]
        start = start if positions is None else positions
        padding = None if real is None else Padding(real)
        x, memory = self._self_decode(tokens, cache, start, padding)
        if n_last is not None and n_last < T:
            x, memory = x[:, -n_last:], None if memory is None else memory[:, -n_last:]
            start = start[:, -n_last:] if isinstance(start, Tensor) else start + T - n_last
        return self._cross_decode(x, memory, cache, start, padding)

    def prefill(self, tokens: Tensor, cache: Cache) -> None:
        """Consume tokens (B, T) without logits: the cross-decoder does not run."""
        self._self_decode(tokens, cache, cache.position)

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Consume tokens (B, T); return their logits (B, T, V)."""
        return self.logits(self.extend(tokens, cache))

    def n_parameters(self, embedding: bool = True) -> int:
        """Count parameters, with or without embedding and head."""
        skipped = () if embedding else (self.embedding.weight, self.head.weight)
        return sum(p.numel() for p in self.parameters() if all(p is not s for s in skipped))

    def _self_decode(
        self, tokens: Tensor, cache: Cache, start: Positions, mask: Mask = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return x (B, T, C) and the memory (B, T, C), or None if no layer reads it."""
        if not cache.layers:
            cache.layers = [None] * self.config.n_self_layers
        x = tokens if tokens.is_floating_point() else self.embedding(tokens)  # (B, T, C)
        if self.config.embedding_factor != 1:
            x = x * self.config.embedding_factor
        memory = None
        for i in range(self.config.n_self_layers):
            x, cache.layers[i], memory = self._block(i, x, start, cache.layers[i], mask)
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
        mask: Mask = None,
    ) -> Tensor:
        shared = None if cache.shared is None else Shared(*cache.shared)
        for i in range(self.config.n_self_layers, len(self.layers)):
            if MIXERS[self.config.layers[i]].reads_memory:
                x, *_ = self._block(i, x, start, memory, mask)
            else:
                x, shared, _ = self._block(i, x, start, shared, mask)
        normed: Tensor = self.head_norm(self.norm(x))
        return normed

    def _block(
        self, i: int, x: Tensor, start: Positions, state: Any, mask: Mask
    ) -> tuple[Tensor, Any, Tensor | None]:
        if not (self.recompute and torch.is_grad_enabled()):
            return self.layers[i](x, start, state, mask)
        # Preserves the RNG state (the default): adapters in a block may have dropout.
        return checkpoint(  # type: ignore[return-value]
            self.layers[i], x, start, state, mask, use_reentrant=False
        )

    @torch.no_grad()
    def _initialize(self) -> None:
        """Initialise weights so that embedding and projections start near unit variance.

        Projections into the residual stream are smaller, by the number of terms it sums.
        """
        for name, parameter in self.named_parameters():
            if parameter.is_meta:
                continue
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            if parameter.ndim < 2:
                continue
            nn.init.normal_(parameter, std=initial_std(name, parameter.shape, len(self.layers)))


def initial_std(name: str, shape: Sequence[int], n_layers: int) -> float:
    """Return the standard deviation of the initial weights of a matrix."""
    std: float = shape[1] ** -0.5
    is_residual = name.endswith(("out_proj.weight", "down_proj.weight"))
    return std * (2 * n_layers) ** -0.5 if is_residual else std
