"""YocobitConfig: the fields of ModelConfig under the roof of transformers' PreTrainedConfig."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from yocobit.config import CROSS_DECODER, MODEL_TYPE, TRANSFORMERS_KEYS, ModelConfig, preset

_FIELDS = tuple(field.name for field in dataclasses.fields(ModelConfig))

# The names by which transformers chooses the layers of a cache.
_LAYER_TYPES = {
    "retention": "linear_attention",
    "window": "sliding_attention",
    "full": "full_attention",
    "cross": "full_attention",
    "gmu": "full_attention",  # of which it keeps nothing
}


class YocobitConfig(PreTrainedConfig):
    """config.json of a checkpoint, field by field; ConfigError if it makes no model.

    Without any field it is the preset "nano". `attribute_map` has the names that transformers
    expects; a change through either name is checked when a model is made of it.
    """

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "last_hidden_state"]
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "intermediate_size": "d_ff",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "sliding_window": "window",
        "rms_norm_eps": "norm_eps",
        "tie_word_embeddings": "tie_embeddings",
    }

    def __init__(
        self,
        use_cache: bool = True,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        **fields: Any,
    ) -> None:
        fields = {self.attribute_map.get(name, name): value for name, value in fields.items()}
        shape = {name: fields.pop(name) for name in _FIELDS if name in fields}
        model = ModelConfig.from_dict(shape) if shape else preset("nano")
        for name, value in model.to_dict().items():
            setattr(self, name, value)
        self.use_cache = use_cache
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id
        super().__init__(**fields)

    @property
    def model(self) -> ModelConfig:
        """The checked config that a Decoder is made from."""
        return ModelConfig.from_dict({name: getattr(self, name) for name in _FIELDS})

    @property
    def num_hidden_layers(self) -> int:
        return len(self.layers)

    @property
    def layer_types(self) -> list[str]:
        """What each layer keeps of the text before it.

        A stack of retention alone also has a window, without content, which counts the tokens: a
        state cannot.
        """
        types = [_LAYER_TYPES[mixer] for mixer in self.layers]
        if set(self.layers) == {"retention"}:
            types[0] = "hybrid_sliding"
        return types

    @property
    def kv_sharing_modes(self) -> list[str | None]:
        """Which layers keep nothing: all of the cross-decoder but the first "cross", whose keys and
        values they "reuse" if they read any.
        """
        first = self.layers.index("cross") if "cross" in self.layers else len(self.layers)
        keep = (mixer not in CROSS_DECODER or i == first for i, mixer in enumerate(self.layers))
        return [None if keeps else "reuse" for keeps in keep]

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what config.json holds: all that yocobit reads, and what it knows to ignore."""
        kept = (*_FIELDS, *TRANSFORMERS_KEYS)
        return {name: value for name, value in self.to_dict().items() if name in kept}
