"""Validation in bits per byte: comparable between tokenizers, and with gzip.

Letters: B batch   T positions   V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yocobit.data.shards import Tokens
from yocobit.training.corpus import IGNORED, Batch
from yocobit.training.distributed import ALONE, Processes

_BATCH = 8  # windows of one forward pass


@torch.no_grad()
def bits_per_byte(
    objective: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    text: Tokens,
    end: int,
    context: int,
    max_tokens: int | None = None,
    processes: Processes = ALONE,
) -> float:
    """Return what a byte of the text costs, every scored token of it predicted once.

    `objective` is an Objective, which all processes call as often as the others. Each window of
    `context` tokens scores its last half and sees the rest of their documents; the first token of
    a document is predicted from the end token. `max_tokens` takes that many, in windows spread
    evenly over the text, and their bytes to be in proportion.
    """
    n_new = (context + 1) // 2  # scored by each window
    places = list(range(0, len(text), n_new))
    if text.has_mask:
        places = [p for p in places if text.is_scored(p, min(p + n_new, len(text))).any()]
    starts = np.array(places)
    if max_tokens is not None and max_tokens < len(starts) * n_new:
        n_windows = max(1, max_tokens // n_new)
        starts = starts[np.arange(n_windows) * len(starts) // n_windows]
    nats, n_scored = 0.0, 0
    n_batches = -(-len(starts) // _BATCH)
    for round_ in range(-(-n_batches // processes.size)):
        first = (round_ * processes.size + processes.rank) * _BATCH
        # Where nothing is left, one window of nothing: the others need this process's weights.
        batch = _windows(text, end, context, n_new, starts[first : first + _BATCH])
        _, terms = objective(batch.inputs, batch.targets, batch.resets)
        nats += float(terms[0])
        n_scored += int((batch.targets != IGNORED).sum())
    total_nats, total_scored = processes.sum(nats, n_scored)
    return total_nats / math.log(2) / (text.n_bytes * total_scored / text.n_scored)


def _windows(text: Tokens, end: int, context: int, n_new: int, starts: NDArray[np.int64]) -> Batch:
    """Return windows (B, T), one at least; targets are IGNORED but for `n_new` tokens from each
    start.
    """
    targets = np.full((max(1, len(starts)), context), IGNORED, dtype=np.int64)
    inputs = np.full(targets.shape, end, dtype=np.int64)
    for row, start in enumerate(starts.tolist()):
        first = max(0, start + n_new - context)
        tokens = text.read(first, min(start + n_new, len(text)))
        is_scored = text.is_scored(first, first + len(tokens))
        is_scored[: start - first] = False
        targets[row, : len(tokens)] = np.where(is_scored, tokens, IGNORED)
        inputs[row, 1 : len(tokens)] = tokens[:-1]
        if first > 0:
            inputs[row, 0] = text.read(first - 1, first)[0]
    return Batch.of(inputs, targets, end)
