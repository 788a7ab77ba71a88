"""The loss mask of a document: the tokens in the loss, by the characters that they cover."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from yocobit.data.documents import Piece
from yocobit.text.windows import Span


class LossMask:
    """Built from the pieces of a document; a token is in the loss if one of its characters is."""

    def __init__(self) -> None:
        self.in_loss = True  # of the last piece
        self.n_bytes = 0  # UTF-8 length of the text in the loss
        # Positions where the flag changes, and the characters in the loss before each.
        self._edges, self._counts = [0], [0]

    def add(self, piece: Piece) -> str:
        """Append a piece; return its text."""
        end = self._edges[-1] + len(piece.text)
        count = self._counts[-1] + len(piece.text) * piece.in_loss
        if len(self._edges) > 1 and piece.in_loss == self.in_loss:
            self._edges[-1], self._counts[-1] = end, count
        else:
            self._edges.append(end)
            self._counts.append(count)
        self.in_loss = piece.in_loss
        self.n_bytes += len(piece.text.encode()) if piece.in_loss else 0
        return piece.text

    def of(self, span: Span) -> NDArray[np.bool_]:
        """Return whether each token of a span is in the loss."""
        starts = np.asarray(span.starts, np.float64)
        ends = np.maximum(span.ends, starts + 1)  # an empty span counts as its first character
        before, after = (np.interp(at, self._edges, self._counts) for at in (starts, ends))
        mask: NDArray[np.bool_] = after > before
        return mask
