"""The Decoder of yocobit.model as models of transformers: base, causal and classification.

Submodules have their names in checkpoints of yocobit, in every class: a checkpoint loads as any of
them.

Letters: B batch   T positions   S cached and new positions   C model width   V vocabulary
         N labels
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)
from transformers.utils.output_capturing import capture_outputs

from yocobit.config import ConfigError
from yocobit.hf import cache as hf_cache
from yocobit.hf.configuration import YocobitConfig, check_quantization
from yocobit.mixers import layer_mixers
from yocobit.model import Cache, Decoder
from yocobit.model.decoder import Block, initial_std
from yocobit.model.norm import RMSNorm
from yocobit.packing import is_packed


class YocobitBlock(Block, GradientCheckpointingLayer):
    """A Block that transformers can checkpoint.

    Its reentrant checkpoints pass gradients only to tensors that are arguments: those of the state
    follow as further arguments, and `state` is then their structure.
    """

    def __call__(self, x: Tensor, start: Any, state: Any, mask: Any = None) -> Any:
        if not (self.gradient_checkpointing and self.training):
            return super().__call__(x, start, state, mask)
        tensors, structure = tree_flatten(state)
        return super().__call__(x, start, structure, mask, *tensors)

    def forward(  # type: ignore[override]
        self, x: Tensor, start: Any, state: Any, mask: Any = None, *tensors: Any
    ) -> tuple[Tensor, Any, Tensor | None]:
        """Return the outputs of the Block."""
        if isinstance(state, TreeSpec):
            state = tree_unflatten(tensors, state)
        return super().forward(x, start, state, mask)


@dataclass
class YocobitOutput(CausalLMOutputWithPast):  # type: ignore[misc]
    """Adds the input of the head, (B, T, C), from which TRL's trainers compute losses."""

    last_hidden_state: Tensor | None = None


class YocobitPreTrainedModel(PreTrainedModel):
    """A Decoder with its submodules registered here, under their names in checkpoints.

    Checkpoints of yocobit load unchanged, and those of save_pretrained can be packed. A submodule
    that is replaced, as PEFT replaces the head, is replaced in the Decoder too.
    """

    config_class = YocobitConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules: ClassVar[list[str]] = ["YocobitBlock"]
    _input_embed_layer = "embedding"
    _can_record_outputs: ClassVar[dict[str, Any]] = {"hidden_states": YocobitBlock}
    # Of the other classes.
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^head\.", r"^score\."]

    def __init__(self, config: YocobitConfig, has_head: bool = False) -> None:
        super().__init__(config)
        decoder = Decoder(config.model, YocobitBlock)
        if not has_head:
            decoder.head = nn.Identity()  # type: ignore[assignment]
        for name, part in decoder.named_children():
            if not isinstance(part, nn.Identity):
                setattr(self, name, part)
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                std = initial_std(f"{name}.weight", module.weight.shape, len(config.layers))
                module.initial_std = std  # type: ignore[assignment]
        object.__setattr__(self, "_decoder", decoder)  # not a submodule: its parts are

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Load a checkpoint as transformers does; ConfigError if a weight is missing.

        Only a new classification head may be missing. With `output_loading_info` the caller
        checks that.
        """
        path = pretrained_model_name_or_path
        _check_source(path, kwargs)
        returns_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)
        if returns_info:
            return model, info
        missing = sorted(set(info["missing_keys"]) - {"score.weight"})
        if missing and path is not None:
            raise ConfigError(
                f"{path}: weights must match config.json but '{missing[0]}' is missing; copy the "
                "checkpoint again"
            )
        return model

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Do nothing: the config names the remote code of a checkpoint."""

    @property
    def decoder(self) -> Decoder:
        """The Decoder over the current submodules."""
        decoder: Decoder = self._decoder
        for name, part in list(decoder.named_children()):
            current = getattr(self, name, part)
            if current is not part:
                setattr(decoder, name, current)
        return decoder

    @property
    def base_model(self) -> PreTrainedModel:
        """A model without head over the same submodules."""
        if "_base" not in self.__dict__:
            with torch.device("meta"):
                base = YocobitModel(copy.copy(self.config))  # changes it
            base.config = self.config
            object.__setattr__(self, "_base", base)  # not a submodule
        for name, _ in self._base.named_children():
            setattr(self._base, name, getattr(self, name))
        self._base.training = self.training
        return self._base  # type: ignore[no-any-return]

    def get_decoder(self) -> PreTrainedModel:
        return self.base_model

    def _hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        past_key_values: DynamicCache | None,
        use_cache: bool | None,
        n_last: int | None = None,
    ) -> tuple[Tensor, DynamicCache | None]:
        """Return the input of the head for the last `n_last` tokens, or for all, and the cache."""
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        resets = None
        if attention_mask is None and past_key_values is None and position_ids is not None:
            resets = position_ids.diff(dim=1, prepend=position_ids[:, :1] - 1) <= 0
            resets = resets if resets.any() else None
        if past_key_values is None and use_cache and resets is None:
            past_key_values = DynamicCache(config=self.config)

        decoder = self.decoder
        n_last = n_last or input_ids.shape[1]
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
        return hidden, past_key_values

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

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a new module, or one that a checkpoint lacks, as the Decoder does."""
        if isinstance(module, RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(
                module.weight, std=getattr(module, "initial_std", self.config.d_model**-0.5)
            )


class YocobitModel(YocobitPreTrainedModel):
    """The model without head: its output is the head's input."""

    def __init__(self, config: YocobitConfig) -> None:
        super().__init__(config)
        self.post_init()

    @property
    def base_model(self) -> PreTrainedModel:
        return self

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Return the input of the head (B, T, C); the arguments are YocobitForCausalLM's."""
        hidden, cache = self._hidden(
            input_ids, attention_mask, position_ids, past_key_values, use_cache
        )
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=cache)


class YocobitForCausalLM(YocobitPreTrainedModel, GenerationMixin):
    """The language model, with its head."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"head.weight": "embedding.weight"}

    def __init__(self, config: YocobitConfig) -> None:
        super().__init__(config, has_head=True)
        self.post_init()

    @capture_outputs
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
        hidden, cache = self._hidden(
            input_ids, attention_mask, position_ids, past_key_values, use_cache, logits_to_keep
        )
        logits = self.head(hidden)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return YocobitOutput(
            loss=loss, logits=logits, past_key_values=cache, last_hidden_state=hidden
        )

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.head = new_embeddings


class YocobitForSequenceClassification(YocobitPreTrainedModel):
    """A linear head on the last token: labels of texts, or their reward."""

    def __init__(self, config: YocobitConfig) -> None:
        super().__init__(config)
        self.score = nn.Linear(config.d_model, config.num_labels, bias=False)
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Return logits (B, N) at the last token of each row that is not padding.

        Without attention_mask, config.pad_token_id is padding.
        """
        hidden, cache = self._hidden(
            input_ids, attention_mask, position_ids, past_key_values, use_cache
        )
        T = hidden.shape[1]
        if attention_mask is None and self.config.pad_token_id is not None:
            attention_mask = input_ids != self.config.pad_token_id
        last = torch.full((len(hidden),), T - 1, device=hidden.device)
        if attention_mask is not None:
            real = attention_mask[:, -T:].to(hidden.device, torch.int64)
            last = (real * torch.arange(T, device=hidden.device)).argmax(dim=1)
        rows = torch.arange(len(hidden), device=hidden.device)
        logits = self.score(hidden[rows, last])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, pooled_logits=logits, config=self.config
            )
        return SequenceClassifierOutputWithPast(loss=loss, logits=logits, past_key_values=cache)


def _check_source(path: str | os.PathLike[str] | None, settings: dict[str, Any]) -> None:
    """Reject a packed model, and quantisation by other libraries."""
    if path is not None and is_packed(Path(path)):
        raise ConfigError(
            f"{path}: is a packed model, which only the engine runs; for transformers name the "
            "checkpoint that it was packed from"
        )
    if settings.get("quantization_config") is not None:
        check_quantization(settings["quantization_config"], "from_pretrained")
