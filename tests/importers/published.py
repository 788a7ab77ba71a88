"""Published checkpoints of other projects in their real layout, tiny and with random weights.

transformers builds the models and writes the directories. Its own code packs the ternary weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers.integrations.bitnet import (
    AutoBitLinear,
    BitLinear,
    pack_weights,
    replace_with_bitnet_linear,
)
from transformers.utils.quantization_config import BitNetQuantConfig

from yocobit.packing import PackedModel
from yocobit.packing.file_format import DTYPES

SHAPE = {
    "vocab_size": 264,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}


def config_of(model_type: str, **changes: Any) -> transformers.PreTrainedConfig:
    return transformers.AutoConfig.for_model(model_type, **{**SHAPE, **changes})


def random_model(model_type: str, seed: int = 0, **changes: Any) -> transformers.PreTrainedModel:
    """Return transformers' model with random weights, norms and biases included, in float32."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config_of(model_type, **changes)).eval()
    _randomise(model)
    return model


def _randomise(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                offset = 0.0 if "Gemma" in type(model).__name__ and "rms_norm" not in name else 1.0
                parameter.uniform_(offset - 0.5, offset + 0.5)
            else:
                parameter.normal_(std=0.3 if name.endswith("bias") else 0.08)


def quantised_model(
    model_type: str, quantization: dict[str, Any], seed: int = 0, **changes: Any
) -> transformers.PreTrainedModel:
    """Return a random model whose linear layers transformers has replaced with its BitNet ones."""
    model = random_model(model_type, seed, **changes)
    settings = BitNetQuantConfig(**quantization)
    excluded = settings.modules_to_not_convert
    replace_with_bitnet_linear(model, ["lm_head"] if excluded is None else excluded, settings)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, BitLinear | AutoBitLinear):
                _fill(layer)
    model.config.quantization_config = settings
    return model.eval()


def _fill(layer: BitLinear | AutoBitLinear) -> None:
    """Give a layer on the meta device random weights."""
    shape = layer.out_features, layer.in_features
    trits = torch.randint(-1, 2, shape).float()
    scale = torch.rand(1) * 0.1 + 0.05
    if isinstance(layer, BitLinear):
        layer.dtype = torch.float32
        layer.weight = torch.nn.Buffer(pack_weights(trits))
        layer.weight_scale = torch.nn.Buffer(1 / scale)
    elif layer.online_quant:
        layer.weight = torch.nn.Parameter(torch.randn(shape) * 0.1)
    else:
        layer.weight = torch.nn.Parameter(trits)
        layer.weight_scale = torch.nn.Buffer(scale)
    if layer.bias is not None:
        kind = torch.nn.Buffer if isinstance(layer, BitLinear) else torch.nn.Parameter
        layer.bias = kind(torch.randn(layer.out_features) * 0.3)
    if layer.rms_norm is not None:
        layer.rms_norm.weight = torch.nn.Parameter(torch.rand(layer.in_features) + 0.5)


def publish(model: transformers.PreTrainedModel, directory: Path, **config: Any) -> Path:
    """Write config.json and model.safetensors; offline ternary weights are packed."""
    directory.mkdir(parents=True)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, layer in model.named_modules():
        if isinstance(layer, AutoBitLinear) and not layer.online_quant:
            tensors[f"{name}.weight"] = pack_weights(tensors[f"{name}.weight"].clone())
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    fields = json.loads(model.config.to_json_string(use_diff=False))
    (directory / "config.json").write_text(json.dumps({**fields, **config}))
    return directory


def edit(directory: Path, **changes: Any) -> None:
    """Change fields of config.json; None removes one."""
    file = directory / "config.json"
    fields = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))


def stored(model: PackedModel, name: str) -> np.ndarray:
    """Return a tensor of a packed model."""
    tensor = model.tensors[name]
    data = model.file.read_bytes()[tensor.begin : tensor.end]
    return np.frombuffer(data, DTYPES[tensor.dtype]).reshape(tensor.shape)


def weights(model: PackedModel, name: str) -> np.ndarray:
    """Return the integers, or the float32 weights, of a parameter."""
    format, shape, _ = model.parameters[name]
    values = stored(model, name)
    if format.is_integer:
        return format.decode(values, *shape) if format.block_columns > 1 else values
    return values.astype(np.float32)
