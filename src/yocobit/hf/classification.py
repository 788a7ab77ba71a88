"""The model with a head for the labels of a text, as transformers' sequence classification.

Letters: B batch   T positions   S cached and new positions   C model width   N labels
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from transformers.utils.output_capturing import capture_outputs

from yocobit.hf.configuration import YocobitConfig
from yocobit.hf.inputs import Inputs
from yocobit.hf.modeling import YocobitPreTrainedModel


class YocobitForSequenceClassification(YocobitPreTrainedModel):
    """A linear head on the last token: labels of texts, or their reward."""

    def __init__(self, config: YocobitConfig) -> None:
        super().__init__(config)
        self.score = nn.Linear(config.d_model, config.num_labels, bias=False)
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
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Return logits (B, N) at the last token of each row that is not padding.

        Without attention_mask, config.pad_token_id is padding.
        """
        inputs = Inputs(input_ids, inputs_embeds, attention_mask, position_ids, past_key_values)
        hidden, cache = self._hidden(inputs, use_cache, kwargs)
        T = hidden.shape[1]
        is_padding_known = input_ids is not None and self.config.pad_token_id is not None
        if attention_mask is None and is_padding_known:
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
