"""Batches: windows of a corpus as tensors.

Letters: B batch   T positions
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yocobit.data.corpus import Corpus
from yocobit.data.tokenizer import end_token


@dataclass(frozen=True)
class Batch:
    """Windows of text: concatenated documents, each ending with the EOS token.

    A position whose input is the EOS token starts a document and attends to nothing before it.
    """

    inputs: Tensor  # (B, T)
    targets: Tensor  # (B, T); IGNORED where not in the loss
    resets: Tensor  # (B, T) bool

    @classmethod
    def of(cls, inputs: NDArray[np.int64], targets: NDArray[np.int64], end: int) -> Batch:
        """Make a batch of inputs (B, T) and targets (B, T), where `end` is the EOS token."""
        return cls(
            torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(inputs == end)
        )

    @classmethod
    def read(cls, corpus: Corpus, seed: int, first: int, size: int, context: int) -> Batch:
        """Read windows `first` to `first + size` of a corpus."""
        inputs, targets = corpus.windows(seed, first, size, context)
        return cls.of(inputs, targets, end_token(corpus.tokenizer))
