"""The Decoder of yocobit.model as models of transformers: the base model and the language model.

Submodules have their names in checkpoints of yocobit, in every class: a checkpoint loads as any of
them. yocobit.hf.classification has the model with labels.

Letters: B batch   T positions   S cached and new positions   C model width   V vocabulary
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
from transformers import AutoTokenizer, DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from yocobit.config import ConfigError
from yocobit.hf import cache as hf_cache
from yocobit.hf.configuration import YocobitConfig, check_quantization
from yocobit.hf.inputs import Inputs
from yocobit.model import Cache, Decoder
from yocobit.model.attention import SelfAttention
from yocobit.model.decoder import Block, initial_std
from yocobit.model.mixers.cross import CrossAttention
from yocobit.model.norm import RMSNorm
from yocobit.packing import is_packed
from yocobit.packing.file_format import TOKENIZER
from yocobit.renamed import aliases

__getattr__ = aliases(
    __name__, {"YocobitForSequenceClassification": "yocobit.hf:YocobitForSequenceClassification"}
)


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
    _can_record_outputs: ClassVar[dict[str, Any]] = {
        "hidden_states": YocobitBlock,
        "attentions": [OutputRecorder(SelfAttention, index=3), OutputRecorder(CrossAttention, 3)],
    }
    # Of the other classes.
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^head\.", r"^score\."]

    def __init__(self, config: YocobitConfig, has_head: bool = False) -> None:
        super().__init__(config)
        decoder = Decoder(config.model, YocobitBlock)
        if not has_head:
            decoder.head = nn.Identity()  # type: ignore[assignment]
            decoder.use_head_norm(nn.Identity())
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
        self._base.decoder.use_head_norm(self.decoder.head_norm)
        self._base.training = self.training
        return self._base  # type: ignore[no-any-return]

    def get_decoder(self) -> PreTrainedModel:
        return self.base_model

    def _hidden(
        self,
        inputs: Inputs,
        use_cache: bool | None,
        records: dict[str, Any],
        n_last: int | None = None,
    ) -> tuple[Tensor, DynamicCache | None]:
        """Return the input of the head and the cache.

        `records` has the options that request hidden states and attention weights. Without them,
        the cross-decoder runs for the last `n_last` tokens only, except in packed batches.
        """
        tokens, cache = inputs.tokens, inputs.past_key_values
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        resets = inputs.resets()
        if cache is None and use_cache and resets is None:
            cache = DynamicCache(config=self.config)
        is_recorded = {
            name: records.get(name, getattr(self.config, name, False))
            for name in ("output_hidden_states", "output_attentions")
        }
        decoder = self.decoder
        _return_weights(decoder, bool(is_recorded["output_attentions"]))
        n_last = None if any(is_recorded.values()) else n_last
        if resets is not None:
            hidden = decoder.hidden(tokens, resets)
        elif cache is None:
            real, positions = inputs.real(0, is_kept=False), inputs.positions(0)
            hidden = decoder.extend(tokens, Cache(), real, n_last, positions)
        else:
            states = hf_cache.load(cache, decoder.config)
            n_past = states.position
            real, positions = inputs.real(n_past, is_kept=True), inputs.positions(n_past)
            hidden = decoder.extend(tokens, states, real, n_last, positions)
            hf_cache.store(cache, states, decoder.config, hidden)
        return hidden, cache

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a new module, or one that a checkpoint lacks, as the Decoder does."""
        if isinstance(module, RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(
                module.weight, std=getattr(module, "initial_std", self.config.d_model**-0.5)
            )
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)


class YocobitModel(YocobitPreTrainedModel):
    """The model without head and head_norm: its output is their input."""

    def __init__(self, config: YocobitConfig) -> None:
        super().__init__(config)
        self.post_init()

    @property
    def base_model(self) -> PreTrainedModel:
        return self

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Return the input of the head (B, T, C); the arguments are YocobitForCausalLM's."""
        inputs = Inputs(input_ids, inputs_embeds, attention_mask, position_ids, past_key_values)
        hidden, cache = self._hidden(inputs, use_cache, kwargs)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=cache)


class YocobitForCausalLM(YocobitPreTrainedModel, GenerationMixin):
    """The language model, with its head."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"head.weight": "embedding.weight"}

    def __init__(self, config: YocobitConfig) -> None:
        super().__init__(config, has_head=True)
        self._tokenizer: Any = None
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> YocobitOutput:
        """Return logits (B, T, V) for input_ids (B, T), and the loss if there are labels (B, T).

        inputs_embeds (B, T, C) may replace input_ids. attention_mask (B, S), over cached and new
        tokens, is 0 at padding, which may be anywhere. position_ids (B, T) are those of rope;
        without mask and cache they mark packed documents: one starts where they do not increase,
        and attends to itself only; such a batch returns no cache. Labels of -100 are ignored.
        `logits_to_keep` is the number of last logits to return, 0 for all, or the indices of those
        to return.
        """
        inputs = Inputs(input_ids, inputs_embeds, attention_mask, position_ids, past_key_values)
        n_last: int | None = None
        kept: slice | Tensor = slice(None)
        if isinstance(logits_to_keep, Tensor):
            kept = logits_to_keep
        elif logits_to_keep:
            n_last, kept = logits_to_keep, slice(-logits_to_keep, None)
        hidden, cache = self._hidden(inputs, use_cache, kwargs, n_last)
        logits = self.decoder.logits(hidden[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return YocobitOutput(
            loss=loss, logits=logits, past_key_values=cache, last_hidden_state=hidden
        )

    def generate(self, *args: Any, tokenizer: Any = None, **kwargs: Any) -> Any:
        """Generate as transformers does; stop strings are found by the checkpoint's tokenizer.

        Give `tokenizer` for a model that was not loaded from a directory with one.
        """
        configs = (self.generation_config, kwargs.get("generation_config"))
        stop = [kwargs.get("stop_strings"), *(getattr(c, "stop_strings", None) for c in configs)]
        source = Path(self.config.name_or_path)
        if tokenizer is None and any(stop) and (source / TOKENIZER).is_file():
            if self._tokenizer is None:
                self._tokenizer = AutoTokenizer.from_pretrained(source)
            tokenizer = self._tokenizer
        return super().generate(*args, tokenizer=tokenizer, **kwargs)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        if self.config.head_norm:
            new_embeddings.norm = self.decoder.head_norm
        self.head = new_embeddings


def _return_weights(decoder: Decoder, returns_weights: bool) -> None:
    """Set whether the attention layers return their weights."""
    for block in decoder.layers:
        mixer = getattr(block, "mixer", None)
        if isinstance(mixer, (SelfAttention, CrossAttention)):
            mixer.returns_weights = returns_weights


def _check_source(path: str | os.PathLike[str] | None, settings: dict[str, Any]) -> None:
    """Reject a packed model, and quantisation by other libraries."""
    if path is not None and is_packed(Path(path)):
        raise ConfigError(
            f"{path}: is a packed model, which only the engine runs; for transformers name the "
            "checkpoint that it was packed from"
        )
    if settings.get("quantization_config") is not None:
        check_quantization(settings["quantization_config"], "from_pretrained")
