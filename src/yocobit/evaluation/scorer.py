"""The interface of models that score tokens.

Letters: T tokens
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Backend = Literal["native", "torch"]
Nats = NDArray[np.float64]

CHUNK = 64  # tokens whose logits are in memory at the same time


class Scorer(Protocol):
    """A model that predicts tokens."""

    backend: Backend
    bos_token: int  # precedes each document; without a BOS token, an EOS token, as in training

    def encode(self, text: str) -> list[int]:
        """Tokenize a text as in training: special tokens in it are plain text."""

    def encode_pieces(self, pieces: Iterable[str]) -> Iterator[Sequence[int]]:
        """Yield the tokens of a text of any length that is given in pieces."""

    def nats(self, tokens: Sequence[int], n_context: int) -> Nats:
        """Return -log p of each of tokens[n_context:], given all tokens before it.

        tokens is (T,) and n_context at least 1.
        """

    @property
    def begin(self) -> int:
        """The name of `bos_token` in 0.1; goes away in 0.2."""
        warnings.warn(
            "Scorer.begin is now Scorer.bos_token; the old name goes away in 0.2",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.bos_token
