"""Master weights made from a packed model, to continue its training.

A packed model stores the integers and scales of its projections. Training has master weights W: the
scale is mean|W| of a matrix, row or group, and the integers are W / scale, rounded and clamped. The
master weights here are s / p times the integers, where s is the scale and p the share of nonzero
integers. Then mean|W| is s, and the quotients 0 and 1 / p >= 1 round to the integers, so the run
starts with the loss of the packed model. The distances of the original master weights from rounding
boundaries are lost: here zeros are half a scale away, the others at least as far. Embedding and
head are those of the file, rounded to its format.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from yocobit.config import ConfigError, WeightKind
from yocobit.exporters.weights import Weights
from yocobit.model.quantization import check_trainable, expand_scales, mean_magnitudes
from yocobit.packing.formats import is_quantized
from yocobit.packing.reader import read_model
from yocobit.packing.verify import verify

STARTED_FROM_PACKED = "master weights are made from the integers and scales of a packed model"


def master_weights(path: Path) -> dict[str, Tensor]:
    """Return weights of all parameters that quantise to those of the packed model `path`."""
    model = read_model(path)
    kind = model.config.weights
    check_trainable(kind)
    if problems := verify(model):
        raise ConfigError(problems[0])
    stored = Weights(model)
    weights: dict[str, Tensor] = {}
    for name, parameter in model.parameters.items():
        values = torch.from_numpy(stored.floats_of(name))
        is_projection = parameter.role == "projection" and is_quantized(kind)
        weights[name] = masters(values, kind) if is_projection else values
    if model.config.tie_embeddings:
        weights["head.weight"] = weights["embedding.weight"]
    return weights


def masters(weight: Tensor, kind: WeightKind) -> Tensor:
    """Return weights (M, K) that quantise to `weight`, which is integers times scales."""
    share = mean_magnitudes((weight != 0).to(weight.dtype), kind)  # p
    return torch.where(weight != 0, weight / expand_scales(share, weight.shape[1], kind), 0.0)
