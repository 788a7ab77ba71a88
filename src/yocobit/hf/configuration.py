"""YocobitConfig: the fields of ModelConfig as a transformers PreTrainedConfig."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from yocobit.config import (
    LABEL_KEYS,
    MODEL_TYPE,
    TRANSFORMERS_KEYS,
    ModelConfig,
    preset,
    without_default_features,
)
from yocobit.errors import ConfigError, printable
from yocobit.hf.cache import counts_tokens
from yocobit.mixers import MixerSpec, layer_mixers
from yocobit.packing import checkpoints

_FIELDS = tuple(field.name for field in dataclasses.fields(ModelConfig))


class YocobitConfig(PreTrainedConfig):
    """config.json of a checkpoint; ConfigError if its fields are invalid.

    Without fields it is the preset "nano". `attribute_map` has the names that transformers expects;
    changes through either name are validated when a model is created.
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

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Do nothing: AUTO_MAP names the remote code of a checkpoint."""

    def __init__(
        self,
        use_cache: bool = True,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        **fields: Any,
    ) -> None:
        if fields.get("quantization_config") is not None:
            check_quantization(fields["quantization_config"], "config")
        fields.pop("num_hidden_layers", None)  # that of `layers`
        theirs = {own: fields.pop(n) for n, own in self.attribute_map.items() if n in fields}
        fields = {**theirs, **fields}
        shape = {name: fields.pop(name) for name in _FIELDS if name in fields}
        model = ModelConfig.from_dict(shape) if shape else preset("nano")
        for name, value in model.fields().items():
            setattr(self, name, value)
        self.use_cache = use_cache
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id
        super().__init__(**{"auto_map": dict(checkpoints.AUTO_MAP), **fields})

    @property
    def model(self) -> ModelConfig:
        """The validated config of the Decoder."""
        return ModelConfig.from_dict({name: getattr(self, name) for name in _FIELDS})

    @property
    def num_hidden_layers(self) -> int:
        return len(self.layers)

    @property
    def layer_types(self) -> list[str]:
        """The type of each layer's cache."""
        types = [_layer_type(spec) for spec in layer_mixers(self.model)]
        if counts_tokens(self.model):
            types[0] = "hybrid_sliding"
        return types

    @property
    def kv_sharing_modes(self) -> list[str | None]:
        """For each layer, "reuse" if it stores nothing, None otherwise.

        Layers without state and KV cache store nothing, nor do those that read the shared K and V,
        except for the first.
        """
        specs = layer_mixers(self.model)
        kinds = [spec.kv_cache for spec in specs]
        stores = {kinds.index("shared")} if "shared" in kinds else set()
        stores |= {i for i, spec in enumerate(specs) if spec.keeps_own_cache}
        if counts_tokens(self.model):
            stores.add(0)
        return [None if i in stores else "reuse" for i in range(len(specs))]

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, also under the names of transformers, which PEFT looks up."""
        theirs = {name: getattr(self, own) for name, own in self.attribute_map.items()}
        return {**super().to_dict(), **theirs, "num_hidden_layers": self.num_hidden_layers}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the content of config.json: the keys that yocobit reads or ignores."""
        changed = super().to_diff_dict()
        extra = {name: changed[name] for name in LABEL_KEYS if name in changed}
        kept = (*_FIELDS, *TRANSFORMERS_KEYS)
        fields = {name: value for name, value in self.to_dict().items() if name in kept}
        return {**without_default_features(fields), "auto_map": dict(checkpoints.AUTO_MAP), **extra}

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kw: Any) -> Any:
        """Write config.json, and the code that it names in auto_map."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        checkpoints.write_remote_code(Path(save_directory))
        return super().save_pretrained(save_directory, *args, **kw)


def check_quantization(quantization: Any, source: str) -> None:
    """Reject the quantisation of other libraries."""
    fields = quantization if isinstance(quantization, dict) else vars(quantization)
    method = fields.get("quant_method", type(quantization).__name__)
    method = getattr(method, "value", method)  # of an enumeration
    raise ConfigError(
        f"{source}: quantization_config must be absent but is {printable(str(method))}: layers of "
        "another library would replace the model's, which round weights as in training; remove it"
    )


def _layer_type(spec: MixerSpec) -> str:
    """Return the name by which transformers selects the cache of a layer."""
    if spec.state_shape is not None:
        return "linear_attention"
    return "sliding_attention" if spec.kv_cache == "ring" else "full_attention"
