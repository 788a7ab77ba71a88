"""Validation in bits per byte: comparable between tokenizers, and with gzip.

Letters: B batch   T positions   V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from yocobit.training.corpus import Shard
from yocobit.training.distributed import ALONE, Processes

_BATCH = 8  # windows of one forward pass


@torch.no_grad()
def bits_per_byte(
    logits: Callable[[Tensor], Tensor],
    shard: Shard,
    end: int,
    context: int,
    max_tokens: int | None = None,
    processes: Processes = ALONE,
) -> float:
    """Return what a byte of the text costs, every token of it predicted once.

    `logits` is a model, or what maps tokens (B, T) to logits (B, T, V) in all processes at once.
    Each window of `context` tokens scores its last half and sees the rest; the first token of the
    text is predicted from the end token. `max_tokens` takes that many, in windows spread evenly
    over the text, and their bytes to be in proportion.
    """
    n_tokens = len(shard.tokens)
    n_new = (context + 1) // 2  # scored by each window
    starts = np.arange(0, n_tokens, n_new)
    if max_tokens is not None and max_tokens < n_tokens:
        n_windows = max(1, max_tokens // n_new)
        starts = starts[np.arange(n_windows) * len(starts) // n_windows]
    nats, n_scored = 0.0, 0
    n_batches = -(-len(starts) // _BATCH)
    for round_ in range(-(-n_batches // processes.size)):
        first = (round_ * processes.size + processes.rank) * _BATCH
        inputs, targets = _windows(shard, end, context, n_new, starts[first : first + _BATCH])
        if first >= len(starts):  # nothing is left, but the others need this process's weights
            inputs, targets = inputs.new_full((1, 1), end), targets.new_full((1, 1), -1)
        losses = F.cross_entropy(
            logits(inputs).flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none"
        )
        nats += float(losses.double().sum())
        n_scored += int((targets >= 0).sum())
    total_nats, total_scored = processes.sum(nats, n_scored)
    return total_nats / math.log(2) / (shard.n_bytes * total_scored / n_tokens)


def _windows(
    shard: Shard, end: int, context: int, n_new: int, starts: np.ndarray[Any, Any]
) -> tuple[Tensor, Tensor]:
    """Return inputs and targets (B, T); targets are -1 but for `n_new` tokens from each start."""
    targets = np.full((len(starts), context), -1, dtype=np.int64)
    inputs = np.full((len(starts), context), end, dtype=np.int64)
    for row, start in enumerate(starts):
        first = max(0, start + n_new - context)
        tokens = shard.tokens[first : start + n_new]
        targets[row, start - first : len(tokens)] = tokens[start - first :]
        inputs[row, 1 : len(tokens)] = tokens[:-1]
        if first > 0:
            inputs[row, 0] = shard.tokens[first - 1]
    return torch.from_numpy(inputs), torch.from_numpy(targets)
