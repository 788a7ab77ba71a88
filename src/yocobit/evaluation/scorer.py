"""The interface of models that score tokens.

Letters: T tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Backend = Literal["native", "torch"]
Nats = NDArray[np.float64]

CHUNK = 64  # tokens whose logits are in memory at the same time


class Scorer(Protocol):
    """A model that predicts tokens."""

    backend: Backend
    bos_token: int  # that starts a document

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, as in training: special tokens in it are plain text."""

    def nats(self, tokens: Sequence[int], n_context: int) -> Nats:
        """Return -log p of tokens[n_context:] of (T,), each given all before it; n_context >= 1."""
