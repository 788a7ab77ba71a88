"""Validation in bits per byte: comparable between tokenizers, and with gzip.

Letters: B batch   T positions   V vocabulary
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from yocobit.model import Decoder
from yocobit.training.corpus import Shard

_BATCH = 8  # windows of one forward pass


@torch.no_grad()
def bits_per_byte(
    model: Decoder, shard: Shard, end: int, context: int, max_tokens: int | None = None
) -> float:
    """Return what a byte of the text costs, every token of it predicted once.

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
    was_training = model.training
    model.eval()
    nats, n_scored = 0.0, 0
    for first in range(0, len(starts), _BATCH):
        inputs, targets = _windows(shard, end, context, n_new, starts[first : first + _BATCH])
        losses = F.cross_entropy(
            model(inputs).flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none"
        )
        nats += float(losses.double().sum())
        n_scored += int((targets >= 0).sum())
    model.train(was_training)
    return nats / math.log(2) / (shard.n_bytes * n_scored / n_tokens)


def _windows(
    shard: Shard, end: int, context: int, n_new: int, starts: np.ndarray[Any, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
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
