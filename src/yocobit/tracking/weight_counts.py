"""How many weights of a model are -1, 0 and +1: what ternary training does over time."""

from __future__ import annotations

import torch
from torch import nn

from yocobit.model.bitlinear import BitLinear
from yocobit.model.quantization import quantize_weight
from yocobit.training.sharding import whole

WEIGHT_COUNTS = "weight_counts"  # the key of a record


@torch.no_grad()
def weight_counts(model: nn.Module) -> dict[str, list[int]]:
    """Return for each quantised matrix, by its name, its counts of -1, 0 and +1.

    Counts, not shares: those of a layer or a model are then sums. Dense matrices are left out.
    Of a sharded model every process must ask.
    """
    return {
        name: _counts(module)
        for name, module in model.named_modules()
        if isinstance(module, BitLinear) and module.kind != "dense"
    }


def _counts(linear: BitLinear) -> list[int]:
    codes, _ = quantize_weight(whole(linear.weight), linear.kind)
    n_minus, n_plus = int((codes < 0).sum()), int((codes > 0).sum())
    return [n_minus, codes.numel() - n_minus - n_plus, n_plus]


def shares(counts: list[int]) -> list[float]:
    """Return counts as parts of their sum."""
    total = sum(counts)
    return [count / total for count in counts]
