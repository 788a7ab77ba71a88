"""The inputs of a call of a model: tokens or embeddings, padding, positions, packed documents.

Letters: B batch   T positions   S cached and new positions   C model width
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache


@dataclass(frozen=True)
class Inputs:
    """The inputs of a call, as transformers passes them."""

    input_ids: Tensor | None  # (B, T)
    inputs_embeds: Tensor | None  # (B, T, C)
    attention_mask: Tensor | None  # (B, S), 0 at padding
    position_ids: Tensor | None  # (B, T) or (1, T)
    past_key_values: DynamicCache | None

    @property
    def tokens(self) -> Tensor:
        """The token ids (B, T) or their embeddings (B, T, C)."""
        if (self.input_ids is None) == (self.inputs_embeds is None):
            n_given = "neither" if self.input_ids is None else "both"
            raise ValueError(
                f"one of input_ids and inputs_embeds must be given but {n_given} are; pass one"
            )
        return self.input_ids if self.inputs_embeds is None else self.inputs_embeds  # type: ignore[return-value]

    def resets(self) -> Tensor | None:
        """Return the first positions of packed documents, (B, T) bool; None without documents."""
        positions = self.position_ids
        if positions is None or not (self.attention_mask is self.past_key_values is None):
            return None
        resets = positions.diff(dim=1, prepend=positions[:, :1] - 1) <= 0
        if torch.compiler.is_exporting():
            return resets.expand(len(self.tokens), -1)
        return resets.expand(len(self.tokens), -1) if resets.any() else None

    def real(self, n_past: int, is_kept: bool) -> Tensor | None:
        """Return where tokens are real (B, S), or None if no real token would attend to padding.

        `is_kept`: whether later calls use the states of this one.
        """
        if self.attention_mask is None:
            return None
        B, T = self.tokens.shape[:2]
        shape = self.attention_mask.shape
        if len(shape) != 2 or (shape[0], shape[1]) != (B, n_past + T):
            raise ValueError(
                f"attention_mask must have shape {(B, n_past + T)}, of cached and new tokens, but "
                f"has {tuple(shape)}; pass the tokenizer's"
            )
        real = self.attention_mask.bool()
        if torch.compiler.is_exporting():
            return real
        if is_kept:
            return None if real.all() else real
        return real if (real[:, 1:] & ~real[:, :-1]).any() else None

    def positions(self, n_past: int) -> Tensor | None:
        """Return position_ids, or None if they are the numbers of earlier tokens."""
        positions, mask = self.position_ids, self.attention_mask
        if positions is None or torch.compiler.is_exporting():
            return positions
        T = self.tokens.shape[1]
        if mask is None:
            default = torch.arange(n_past, n_past + T, device=positions.device)
            return None if (positions == default).all() else positions
        real = mask.bool()
        is_default = positions == (real.cumsum(dim=1) - 1)[:, -T:]
        return None if (is_default | ~real[:, -T:]).all() else positions
