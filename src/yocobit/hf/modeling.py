"""YocobitForCausalLM: the Decoder of yocobit.model with the interface of transformers.

Letters: B batch   T positions   S cached and new positions   C model width   V vocabulary
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from yocobit.config import ConfigError
from yocobit.hf import cache as hf_cache
from yocobit.hf.configuration import YocobitConfig
from yocobit.mixers import layer_mixers
from yocobit.model import Cache, Decoder
from yocobit.packing import is_packed


@dataclass
class YocobitOutput(CausalLMOutputWithPast):  # type: ignore[misc]
    """Adds the input of the head, (B, T, C), from which TRL's trainers compute losses."""

    last_hidden_state: Tensor | None = None


class YocobitForCausalLM(PreTrainedModel, GenerationMixin):
    """A Decoder with its submodules registered here, under their names in checkpoints.

    Checkpoints of yocobit load unchanged, and those of save_pretrained can be packed. A submodule
    that is replaced, as PEFT replaces the head, is replaced in the Decoder too.
    """

    config_class = YocobitConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules: ClassVar[list[str]] = ["Block"]
    _input_embed_layer = "embedding"
    _tied_weights_keys: ClassVar[dict[str, str]] = {"head.weight": "embedding.weight"}

    def __init__(self, config: YocobitConfig) -> None:
        super().__init__(config)
        decoder = Decoder(config.model)
        for name, part in decoder.named_children():
            setattr(self, name, part)
        object.__setattr__(self, "_decoder", decoder)  # not a submodule: its parts are
        self.gradient_checkpointing = False  # set by transformers
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> Any:
        """Load a checkpoint as transformers does; ConfigError if a weight is missing."""
        path = Path(pretrained_model_name_or_path)
        if is_packed(path):
            raise ConfigError(
                f"{path}: is a packed model, which only the engine runs; for transformers name the "
                "checkpoint that it was packed from"
            )
        returns_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)
        if missing := sorted(info["missing_keys"]):
            raise ConfigError(
                f"{path}: weights must match config.json but '{missing[0]}' is missing; copy the "
                "checkpoint again"
            )
        return (model, info) if returns_info else model

    @property
    def decoder(self) -> Decoder:
        """The Decoder over the current submodules."""
        decoder: Decoder = self._decoder
        for name, part in self.named_children():
            if getattr(decoder, name) is not part:
                setattr(decoder, name, part)
        decoder.recompute = self.gradient_checkpointing and self.training
        return decoder

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> YocobitOutput:
        """Return logits (B, T, V) for input_ids (B, T), and the loss if there are labels (B, T).

        attention_mask (B, S), over cached and new tokens, is 0 at padding, which may be on either
        side. position_ids (B, T), without mask and cache, mark packed documents: one starts where
        they do not increase, and attends to itself only; such a batch returns no cache. Labels of
        -100 are ignored. `logits_to_keep` is the number of last logits to return, 0 for all: the
        cross-decoder runs for these tokens only, except in packed batches.
        """
        for name in ("output_hidden_states", "output_attentions"):
            if kwargs.get(name):
                raise ValueError(f"{name} must be false: the model does not return them")
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        resets = None
        if attention_mask is None and past_key_values is None and position_ids is not None:
            resets = position_ids.diff(dim=1, prepend=position_ids[:, :1] - 1) <= 0
            resets = resets if resets.any() else None
        if past_key_values is None and use_cache and resets is None:
            past_key_values = DynamicCache(config=self.config)

        decoder = self.decoder
        n_last = logits_to_keep or input_ids.shape[1]
        if resets is not None:
            hidden = decoder.hidden(input_ids, resets)[:, -n_last:]
        elif past_key_values is None:
            real = self._real(attention_mask, is_kept=False)
            hidden = decoder.extend(input_ids, Cache(), real, n_last)
        else:
            states = hf_cache.load(past_key_values, decoder.config)
            real = self._real(attention_mask, is_kept=True)
            self._check_window(real, states.position)
            hidden = decoder.extend(input_ids, states, real, n_last)
            hf_cache.store(past_key_values, states, decoder.config, hidden)
        logits = decoder.head(hidden)

        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return YocobitOutput(
            loss=loss, logits=logits, past_key_values=past_key_values, last_hidden_state=hidden
        )

    @staticmethod
    def _real(attention_mask: Tensor | None, is_kept: bool) -> Tensor | None:
        """Return where tokens are real (B, S), or None if no real token would attend to padding.

        `is_kept`: whether later calls use the states of this one.
        """
        if attention_mask is None:
            return None
        if attention_mask.ndim != 2:
            raise ValueError(
                f"attention_mask must have shape (B, S) but has {tuple(attention_mask.shape)}; "
                "pass the tokenizer's"
            )
        real = attention_mask.bool()
        if is_kept:
            return None if real.all() else real
        return real if (real[:, 1:] & ~real[:, :-1]).any() else None

    def _check_window(self, real: Tensor | None, n_past: int) -> None:
        """Reject padding inside a sequence: a window holds its last tokens, padding included."""
        has_window = any(spec.kv_cache == "ring" for spec in layer_mixers(self._decoder.config))
        if real is None or n_past == 0 or not has_window:
            return
        if (real[:, : n_past - 1] & ~real[:, 1:n_past]).any():
            raise ValueError(
                "attention_mask must have no padding between cached and new tokens of a model with "
                "sliding windows but has some; pad on the left"
            )

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.head = new_embeddings

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: the Decoder has initialised its weights."""
