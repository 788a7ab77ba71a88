"""Evaluation metrics: bits per byte, comparable between tokenizers, and weight counts.

Letters: B batch   T positions   V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from yocobit.data.corpus import IGNORED
from yocobit.data.shards import Tokens
from yocobit.model.bitlinear import BitLinear
from yocobit.model.quantization import quantize_weight
from yocobit.training.batch import Batch
from yocobit.training.distributed import SINGLE_PROCESS, Processes
from yocobit.training.sharding import full

_BATCH = 8  # windows of one forward pass


@torch.no_grad()
def bits_per_byte(
    objective: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    text: Tokens,
    end: int,
    context: int,
    max_tokens: int | None = None,
    processes: Processes = SINGLE_PROCESS,
    report: Callable[[float], object] | None = None,
) -> float:
    """Return the cross-entropy of the text per byte; each token in the loss is predicted once.

    All processes call `objective`, an Objective, the same number of times. The second half of each
    window of `context` tokens is in the loss, with the first half as its context. The first token
    of a document is predicted from the EOS token. `max_tokens` limits the evaluation to windows
    spread evenly over the text, and assumes as many bytes per token in them as in all of it.
    `report` receives the completed fraction.
    """
    n_new = (context + 1) // 2  # tokens of each window in the loss
    positions = list(range(0, len(text), n_new))
    if text.has_mask:
        positions = [p for p in positions if text.loss_mask(p, min(p + n_new, len(text))).any()]
    starts = np.array(positions)
    if max_tokens is not None and max_tokens < len(starts) * n_new:
        n_windows = max(1, max_tokens // n_new)
        starts = starts[np.arange(n_windows) * len(starts) // n_windows]
    nats, n_targets = 0.0, 0
    n_batches = -(-len(starts) // _BATCH)
    n_rounds = -(-n_batches // processes.size)
    for i in range(n_rounds):
        if report is not None:
            report(i / n_rounds)
        first = (i * processes.size + processes.rank) * _BATCH
        # If no windows are left, one without targets: the other processes gather weights from this.
        batch = _windows(text, end, context, n_new, starts[first : first + _BATCH])
        _, terms = objective(batch.inputs, batch.targets, batch.resets)
        nats += float(terms[0])
        n_targets += int((batch.targets != IGNORED).sum())
    total_nats, total_targets = processes.sum(nats, n_targets)
    return total_nats / math.log(2) / (text.n_bytes * total_targets / text.n_in_loss)


def _windows(text: Tokens, end: int, context: int, n_new: int, starts: NDArray[np.int64]) -> Batch:
    """Return windows (B, T), at least one; targets are `n_new` tokens from each start."""
    targets = np.full((max(1, len(starts)), context), IGNORED, dtype=np.int64)
    inputs = np.full(targets.shape, end, dtype=np.int64)
    for row, start in enumerate(starts.tolist()):
        first = max(0, start + n_new - context)
        tokens = text.read(first, min(start + n_new, len(text)))
        in_loss = text.loss_mask(first, first + len(tokens))
        in_loss[: start - first] = False
        targets[row, : len(tokens)] = np.where(in_loss, tokens, IGNORED)
        inputs[row, 1 : len(tokens)] = tokens[:-1]
        if first > 0:
            inputs[row, 0] = text.read(first - 1, first)[0]
    return Batch.of(inputs, targets, end)


@torch.no_grad()
def weight_counts(model: nn.Module) -> dict[str, list[int]]:
    """Return the numbers of codes -1, 0 and +1 of each quantised matrix, by name.

    All processes of a sharded model call this. Dense matrices are omitted.
    """
    return {
        name: _count_codes(module)
        for name, module in model.named_modules()
        if isinstance(module, BitLinear) and module.is_quantized
    }


def _count_codes(linear: BitLinear) -> list[int]:
    codes, _ = quantize_weight(full(linear.weight), linear.kind)
    n_minus, n_plus = int((codes < 0).sum()), int((codes > 0).sum())
    return [n_minus, codes.numel() - n_minus - n_plus, n_plus]
